"""A residual network, dense and as each member of Sparse-IFT at the same operations, beside a wider one, pruned.

    python examples/sparse_ift.py --data fashion-mnist --densities 0.5 0.25 0.1 --epochs 5 --seeds 3
    python examples/sparse_ift.py --depth 18 --width 64 --shape 3x32x32 --batch 32 --pattern block:32 --rounds 3

prints accuracy, operations, weights, memory, the time of a training step, and that of a pass of the model folded and
packed for inference; the second, which trains nothing, only what it costs for random images of a shape.
"""

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cutwork as cw
from cutwork.data import load_data
from cutwork.data.images import Images
from cutwork.layers.composite import Doped, Factorized, Parallel
from cutwork.layers.swap import sparse_layers
from cutwork.models.resnet import DEPTHS, STEMS, make_resnet
from cutwork.text import in_columns
from cutwork.transforms import Larger, doped, factorized, parallel, wide, wide_factorized

MEMBERS: dict[str, Callable[..., Larger]] = {
    "wide": wide,
    "parallel": parallel,
    "factorized": partial(factorized, between="norm+relu"),
    "doped": doped,
    "wide-factorized": partial(wide_factorized, between="norm+relu"),
}
DENSE = "dense"
PRUNED = "wide, pruned"
# A model whose steps are only timed is made for so many.
SHORTEST = 40
# Of each column, its head and how wide it is at the least.
COLUMNS = {
    "model": 15,
    "density": 7,
    "accuracy": 9,
    "spread": 6,
    "FLOPs": 14,
    "at first": 14,
    "weights": 11,
    "MiB": 6,
    "kept MiB": 8,
    "step ms": 8,
    "x dense": 7,
    "masked": 7,
    "packed": 7,
    "why not": 0,
}
MIB = 2**20

Cells = dict[str, str]


@dataclass(frozen=True)
class Result:
    """What one training run came to; operations are those of an image, forward, in the end and at first."""

    accuracy: float
    flops: int
    first_flops: int
    weights: int


@dataclass
class Candidate:
    """A model in training, and how long its steps took."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    x: Tensor
    y: Tensor
    times: list[float] = field(default_factory=list)

    def step(self) -> None:
        """Take one step of training."""
        begin = time.perf_counter()
        take_step(self.model, self.optimizer, self.x, self.y)
        self.times.append(time.perf_counter() - begin)

    @property
    def seconds(self) -> float:
        """How long a step takes, the first left out."""
        return statistics.median(self.times[1:])


@cache
def enlarge(name: str, density: float, seed: int, image: tuple[int, ...], net: tuple[tuple[str, Any], ...]) -> Larger:
    """Return the member of this name, of a network of these options with first weights of this seed."""
    torch.manual_seed(seed)
    model = make_resnet(channels=image[0], **dict(net))
    return MEMBERS["wide" if name == PRUNED else name](model, density, inputs=torch.zeros(1, *image), seed=seed)


def make(
    name: str, density: float, seed: int, steps: int, storage: str, data: Images, options: argparse.Namespace
) -> tuple[nn.Module, cw.Sparsifier | None]:
    """Return a model of this name, and what moves its masks if it has some."""
    image = tuple(data.train_images.shape[1:])
    classes = int(data.train_labels.max()) + 1
    net = {"depth": options.depth, "num_classes": classes, "width": options.width, "stem": options.stem}
    if name == DENSE:
        torch.manual_seed(seed)
        return make_resnet(channels=image[0], **net), None
    larger = enlarge(name, density, seed, image, tuple(net.items()))
    model = copy.deepcopy(larger.model)
    if not larger.densities:
        return model, None
    every = max(1, steps // 40)
    methods = {"rigl": cw.RigL(every=every), "static": cw.Static()}
    sparsifier = cw.sparsify(
        model,
        larger.patterns(options.pattern),
        density=larger.densities,
        method=cw.Gradual(every=every) if name == PRUNED else methods[options.method],
        steps=steps,
        seed=seed,
        # What is pruned begins whole.
        storage="dense" if name == PRUNED else storage,
    )
    return model, sparsifier


def make_optimizer(model: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    """Return an optimizer whose rates suit how dense each layer is."""
    groups = cw.param_groups(model, lr=options.rate, weight_decay=5e-4, power=0.5)
    return torch.optim.SGD(groups, momentum=0.9, nesterov=True)


def run(name: str, density: float, seed: int, data: Images, options: argparse.Namespace) -> Result:
    """Train one model and return what it came to."""
    steps = options.epochs * math.ceil(len(data.train_images) / options.batch) or SHORTEST
    model, sparsifier = make(name, density, seed, steps, options.storage, data, options)
    first_flops = cw.flops(model, data.train_images[:1]).sparse
    optimizer = make_optimizer(model, options)
    if sparsifier is not None:
        sparsifier.attach(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps)
    chance = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(options.epochs):
        for chosen in torch.randperm(len(data.train_images), generator=chance).split(options.batch):
            take_step(model, optimizer, data.train_images[chosen], data.train_labels[chosen])
            schedule.step()
    return Result(
        accuracy=measure_accuracy(model, data) if options.epochs else math.nan,
        flops=cw.flops(model, data.train_images[:1]).sparse,
        first_flops=first_flops,
        weights=count_weights(model),
    )


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """Take one step of training."""
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


@torch.no_grad()
def measure_accuracy(model: nn.Module, data: Images) -> float:
    """Return the share of the test images that a model names rightly."""
    model.eval()
    found = [model(images).argmax(1) for images in data.test_images.split(500)]
    return (torch.cat(found) == data.test_labels).float().mean().item()


def count_weights(model: nn.Module) -> int:
    """Return how many numbers of a model its masks keep, of those that train."""
    kept = {id(layer.trained): layer.describe_weight().num_kept for layer in sparse_layers(model).values()}
    return sum(kept.get(id(each), each.numel()) for each in model.parameters())


def prepare(
    name: str, density: float, storage: str, data: Images, options: argparse.Namespace, channels_last: bool = True
) -> Candidate:
    """Return a model ready for steps whose time is measured."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = data.train_images[: options.batch].contiguous(memory_format=order)
    model, sparsifier = make(name, density, 0, SHORTEST, storage, data, options)
    model.to(memory_format=order).train()  # pyrefly: ignore
    if sparsifier is not None and storage == "compressed" and name != PRUNED:
        cw.fuse(model, x[:2])
    return Candidate(model, make_optimizer(model, options), x, data.train_labels[: options.batch])


def measure(density: float, names: Sequence[str], data: Images, options: argparse.Namespace) -> Iterator[Cells]:
    """Yield what a step costs, for the dense model and each of these: what `cost_cells` says, in turns."""
    dense = [prepare(DENSE, 1.0, "dense", data, options, channels_last) for channels_last in (True, False)]
    compressed = {name: prepare(name, density, "compressed", data, options) for name in names}
    masked = {name: prepare(name, density, "dense", data, options) for name in names}
    for _ in range(1 + options.rounds):
        for candidate in (*dense, *compressed.values(), *masked.values()):
            candidate.step()
    fastest = min(dense, key=lambda each: each.seconds)
    # What is pruned has all its weights at first.
    sparse = {name: each.model for name, each in compressed.items() if name != PRUNED}
    packed = measure_inference([each.model for each in dense], sparse, fastest.x, options.rounds)
    yield cost_cells(fastest, fastest, fastest) | {"packed": "1.00"}
    for name in names:
        yield cost_cells(compressed[name], masked[name], fastest) | (
            {"packed": f"{packed[name]:.2f}"} if name in packed else {}
        )


@torch.no_grad()
def measure_inference(
    dense: Sequence[nn.Module], sparse: dict[str, nn.Module], x: Tensor, rounds: int
) -> dict[str, float]:
    """Return how long a pass of each model takes, folded, packed and fused, as a share of the fastest dense form's."""
    forms = {f"dense {number}": copy.deepcopy(model).eval() for number, model in enumerate(dense)}
    forms["dense, compiled"] = torch.compile(copy.deepcopy(dense[0]).eval())  # pyrefly: ignore
    whole = [*forms]
    for name, trained in sparse.items():
        forms[name] = model = copy.deepcopy(trained).eval()
        expected = model(x)
        if any(isinstance(part, Parallel | Factorized | Doped) for part in model.modules()):
            cw.fold(model)
        if sparse_layers(model):
            cw.pack(model, x)
            cw.fuse(model, x[:2])
        torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-3)
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(1 + rounds):
        for name, model in forms.items():
            begin = time.perf_counter()
            model(x)
            times[name].append(time.perf_counter() - begin)
    seconds = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    fastest = min(seconds[name] for name in whole)
    return {name: seconds[name] / fastest for name in sparse}


def cost_cells(candidate: Candidate, masked: Candidate, dense: Candidate) -> Cells:
    """Return bytes of weights, gradients and optimizer, bytes kept for backward, and times, as text."""
    return {
        "MiB": f"{count_state(candidate) / MIB:.1f}",
        "kept MiB": f"{count_kept(candidate) / MIB:.1f}",
        "step ms": f"{1e3 * candidate.seconds:.1f}",
        "x dense": f"{candidate.seconds / dense.seconds:.2f}",
        "masked": f"{masked.seconds / dense.seconds:.2f}",
    }


def count_state(candidate: Candidate) -> int:
    """Return the bytes of everything that trains, of gradients, masks and indices, and of the optimizer."""
    tensors = [*candidate.model.parameters(), *candidate.model.buffers()]
    tensors += [each.grad for each in candidate.model.parameters() if each.grad is not None]
    tensors += [
        each for state in candidate.optimizer.state.values() for each in state.values() if torch.is_tensor(each)
    ]
    return sum(each.nbytes for each in tensors)


def count_kept(candidate: Candidate) -> int:
    """Return the bytes that the way forward keeps for the way back, besides the model's own."""
    own = {each.untyped_storage().data_ptr() for each in (*candidate.model.parameters(), *candidate.model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        # The result holds what is kept until all was counted.
        loss = F.cross_entropy(candidate.model(candidate.x), candidate.y)
    del loss
    return sum(size for address, size in kept.items() if address not in own)


def compare(options: argparse.Namespace) -> Iterator[Cells]:
    """Yield a row for the dense model, and one for each member and the pruned model at each density."""
    data = random_images(options.shape) if options.shape else load_data(options.data)
    if options.images:
        data = Images(*(part[: options.images] for part in vars(data).values()))
    for at, density in enumerate(options.densities):
        rows = {name: {"model": name, "density": f"{density:g}"} for name in (*options.members, PRUNED)}
        for name, cells in rows.items():
            try:
                make(name, density, 0, SHORTEST, options.storage, data, options)
            except ValueError as reason:
                cells["why not"] = str(reason)
        possible = [name for name, cells in rows.items() if "why not" not in cells]
        of_dense, *costs = measure(density, possible, data, options)
        if not at:
            yield {"model": DENSE, "density": "1"} | result_cells(DENSE, 1.0, data, options) | of_dense
        costs_of = dict(zip(possible, costs, strict=True))
        for name, cells in rows.items():
            yield cells | (result_cells(name, density, data, options) | costs_of[name] if name in costs_of else {})


def random_images(shape: str) -> Images:
    """Return some images of a shape like 3x32x32, of ten classes, to train nothing with."""
    images, labels = torch.randn(256, *map(int, shape.split("x"))), torch.arange(256) % 10
    return Images(images, labels, images, labels)


def result_cells(name: str, density: float, data: Images, options: argparse.Namespace) -> Cells:
    """Return the mean of what several runs came to, as text."""
    results = [run(name, density, seed, data, options) for seed in range(options.seeds)]
    accuracies = [100 * each.accuracy for each in results]
    return {
        "accuracy": f"{statistics.mean(accuracies):.2f} %" if options.epochs else "",
        "spread": f"{statistics.stdev(accuracies):.2f}" if options.epochs and len(results) > 1 else "",
        "FLOPs": f"{results[0].flops:,}",
        "at first": f"{results[0].first_flops:,}",
        "weights": f"{results[0].weights:,}",
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", choices=("digits", "fashion-mnist"))
    parser.add_argument("--shape", help="time steps on random images of this shape, like 3x32x32, and train nothing")
    parser.add_argument("--images", type=int, default=0, help="so many of the data set, 0 for all")
    parser.add_argument("--depth", type=int, default=8, choices=list(DEPTHS), help="layers of the network")
    parser.add_argument("--width", type=int, default=32, help="channels of its first convolution")
    parser.add_argument("--stem", default="small", choices=list(STEMS))
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--members", nargs="+", default=list(MEMBERS), choices=list(MEMBERS))
    parser.add_argument("--epochs", type=int, default=10, help="0 to see only what each model costs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each model")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each model that are timed, in turns")
    parser.add_argument("--method", default="rigl", choices=("rigl", "static"))
    parser.add_argument("--pattern", default="block:8")
    parser.add_argument("--storage", default="compressed", choices=("compressed", "dense"), help="that trains")
    options = parser.parse_args(arguments)
    if options.shape:
        options.epochs = 0
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all and print what they came to."""
    for cells in chain([{name: name for name in COLUMNS}], compare(parse(arguments))):
        line = [cells.get(name, "") for name in COLUMNS]
        print(*in_columns([line], "<" + ">" * (len(COLUMNS) - 2) + "<", widths=tuple(COLUMNS.values())), flush=True)


if __name__ == "__main__":
    main()
