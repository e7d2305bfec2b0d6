"""A small ResNet, dense and as every member of Sparse-IFT at the same operations, beside a wider one that is pruned.

    python examples/sparse_ift.py --data fashion-mnist --densities 0.5 0.25 0.1 --epochs 5 --seeds 3

prints accuracy, operations, weights and the time of a training step.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cutwork as cw
from cutwork.data import load_data
from cutwork.data.images import Images
from cutwork.layers.swap import sparse_layers
from cutwork.text import in_columns
from cutwork.transforms import Larger, doped, factorized, parallel, wide, wide_factorized

MEMBERS: dict[str, Callable[..., Larger]] = {
    "wide": wide,
    "parallel": parallel,
    "factorized": lambda *given, **options: factorized(*given, between="norm+relu", **options),
    "doped": doped,
    "wide-factorized": lambda *given, **options: wide_factorized(*given, between="norm+relu", **options),
}
PRUNED = "wide, pruned"
HEAD = ("model", "density", "accuracy", "spread", "FLOPs", "at first", "weights", "step ms", "why not")
WIDTHS = (15, 7, 9, 6, 14, 14, 11, 8)


class Block(nn.Module):
    """Two convolutions and what goes around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.around = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways, cut at zero."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.around(x))


def make_resnet(channels: int, width: int, num_classes: int = 10) -> nn.Sequential:
    """Return a ResNet of three blocks."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Block(width, width, 1),
        Block(width, 2 * width, 2),
        Block(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, num_classes),
    )


@dataclass(frozen=True)
class Result:
    """What one run came to; operations are those of an image, forward, in the end and at first."""

    accuracy: float
    flops: int
    first_flops: int
    weights: int
    step_ms: float


def run(member: str | None, density: float, seed: int, data: Images, options: argparse.Namespace) -> Result:
    """Train one model and return what it came to; `member` None is the dense one."""
    torch.manual_seed(seed)
    model: nn.Module = make_resnet(data.train_images.shape[1], options.width)
    one = data.train_images[:1]
    steps = options.epochs * math.ceil(len(data.train_images) / options.batch)
    sparsifier = None
    if member is not None:
        larger = MEMBERS["wide" if member == PRUNED else member](model, density, inputs=one, seed=seed)
        model = larger.model
        if larger.densities:
            every = max(1, steps // 40)
            methods = {"rigl": cw.RigL(every=every), "static": cw.Static()}
            sparsifier = cw.sparsify(
                model,
                larger.patterns(options.pattern),
                density=larger.densities,
                method=cw.Gradual(every=every) if member == PRUNED else methods[options.method],
                steps=steps,
                seed=seed,
                # What is pruned begins whole.
                storage="dense" if member == PRUNED else options.storage,
            )
    first_flops = cw.flops(model, one).sparse
    optimizer = torch.optim.SGD(
        cw.param_groups(model, lr=options.rate, weight_decay=5e-4, power=0.5), momentum=0.9, nesterov=True
    )
    if sparsifier is not None:
        sparsifier.attach(optimizer)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in optimizer.param_groups], total_steps=steps
    )
    times = train(model, optimizer, schedule, data, options, seed)
    last_flops = cw.flops(model, one).sparse
    return Result(
        accuracy=measure_accuracy(model, data),
        flops=last_flops,
        first_flops=first_flops,
        weights=count_weights(model),
        step_ms=1e3 * statistics.median(times),
    )


def train(
    model: nn.Module, optimizer: Any, schedule: Any, data: Images, options: argparse.Namespace, seed: int
) -> list[float]:
    """Train a model and return how long each step took, in seconds."""
    chance = torch.Generator().manual_seed(seed)
    model.train()
    times = []
    for _ in range(options.epochs):
        for chosen in torch.randperm(len(data.train_images), generator=chance).split(options.batch):
            begin = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(model(data.train_images[chosen]), data.train_labels[chosen]).backward()
            optimizer.step()
            times.append(time.perf_counter() - begin)
            schedule.step()
    return times


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


def compare(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    """Yield a row for the dense model, and one for each member and the pruned model at each density."""
    data = load_data(options.data)
    if options.images:
        data = Images(
            data.train_images[: options.images],
            data.train_labels[: options.images],
            data.test_images[: options.images],
            data.test_labels[: options.images],
        )
    yield row("dense", 1.0, [run(None, 1.0, seed, data, options) for seed in range(options.seeds)])
    for density in options.densities:
        for member in (*options.members, PRUNED):
            try:
                results = [run(member, density, seed, data, options) for seed in range(options.seeds)]
                yield row(member, density, results)
            except ValueError as reason:
                yield (member, f"{density:g}", *[""] * 6, str(reason))


def row(name: str, density: float, results: Sequence[Result]) -> tuple[str, ...]:
    """Return the mean of several runs, as text."""
    mean = {key: statistics.mean(getattr(each, key) for each in results) for key in vars(results[0])}
    spread = statistics.stdev(each.accuracy for each in results) if len(results) > 1 else 0.0
    return (
        name,
        f"{density:g}",
        f"{100 * mean['accuracy']:.2f} %",
        f"{100 * spread:.2f}",
        f"{mean['flops']:,.0f}",
        f"{mean['first_flops']:,.0f}",
        f"{mean['weights']:,.0f}",
        f"{mean['step_ms']:.1f}",
        "",
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", choices=("digits", "fashion-mnist"))
    parser.add_argument("--images", type=int, default=0, help="so many of the data set, 0 for all")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--members", nargs="+", default=list(MEMBERS), choices=list(MEMBERS))
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--method", default="rigl", choices=("rigl", "static"))
    parser.add_argument("--pattern", default="block:8")
    parser.add_argument("--storage", default="compressed", choices=("compressed", "dense"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all and print what they came to."""
    for line in chain([HEAD], compare(parse(arguments))):
        print(*in_columns([line], "<>>>>>>><", widths=WIDTHS), flush=True)


if __name__ == "__main__":
    main()
