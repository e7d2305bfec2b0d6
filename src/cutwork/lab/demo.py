"""The demonstration: a network trained dense and sparse side by side, on digits of the package, and then packed."""

import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutwork.bench.benchmark import benchmark
from cutwork.bench.choices import check_seed, make_folder
from cutwork.costs.flops import flops
from cutwork.costs.pictures import draw_masks, sketch_mask
from cutwork.data.digits import Digits, load_digits
from cutwork.files.checkpoint import load, save
from cutwork.layers.storage import compress, why_not_compressed
from cutwork.layers.swap import sparse_layers
from cutwork.methods import Method, find_method
from cutwork.patterns import parse
from cutwork.sparsity.compressed import FixedIndex
from cutwork.sparsity.fixed import Fixed
from cutwork.speed.packing import pack
from cutwork.training.baking import bake
from cutwork.training.sparsifier import Sparsifier
from cutwork.training.sparsify import sparsify

logger = logging.getLogger(__name__)

WIDTH = 512
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
DENSITY = 0.1
# The papers' 100 suits runs of many thousand steps; this one has 660.
STEPS_BETWEEN_MOVES = 20
# For the comparison of the packed network with a dense one.
SECONDS = 1.0
Progress = Callable[[int, int, str], None]
# What the storage, in which the sparse network trained, means for the time of a step.
STORED = {
    "compressed": ["The sparse layers stored, trained and multiplied only what their masks kept: compressed storage."],
    "dense": [
        "Masks of this kind need dense storage, whose whole weights run on PyTorch's dense kernels: its steps are no",
        "faster. Fixed masks on block, vector and shuffled patterns train in compressed storage.",
    ],
}


@final
@dataclass(frozen=True)
class Side:
    """What one of the two networks came to."""

    accuracy: float
    parameters: int
    megaflops_forward: float
    megaflops_training: float
    bytes_on_disk: int
    step_ms: float


@final
@dataclass(frozen=True)
class Packed:
    """The sparse network in the forms that are fastest here, beside a dense one that computes the same."""

    plan: str
    dense_ms: float | None
    packed_ms: float | None
    ratio: float | None

    def __str__(self) -> str:
        lines = [
            f"Packed for {BATCH_SIZE} images: each layer dense or as tiles, whichever was measured faster here.",
            "",
        ]
        if self.dense_ms is None or self.packed_ms is None or self.ratio is None:
            return "\n".join([*lines, self.plan, "", "Its outputs DIFFER from those of the same network stored dense."])
        why = "" if self.ratio > 1.03 else "; the table says why it is no faster"
        return "\n".join(
            [
                *lines,
                self.plan,
                "",
                f"Forward with equal outputs: {self.dense_ms:.3f} ms stored dense, {self.packed_ms:.3f} ms packed, "
                f"{self.ratio:.2f} times as fast{why}.",
            ]
        )


@final
@dataclass(frozen=True)
class DemoResult:
    """Both networks, and whether the saved sparse one came back bit for bit."""

    dense: Side
    sparse: Side
    pattern: str
    density: float
    method: str
    storage: str
    num_moves: int
    itop_rate: float
    weights_were_folded: bool
    reload_is_equal: bool
    packed: Packed
    mask_picture: str
    files: tuple[str, ...]

    def __str__(self) -> str:
        rows = [
            ("test accuracy", "{:.1%}", "accuracy"),
            ("parameters kept", "{:,}", "parameters"),
            ("MFLOPs, one image forward", "{:.3f}", "megaflops_forward"),
            ("MFLOPs, one image in training", "{:.3f}", "megaflops_training"),
            ("bytes on disk", "{:,}", "bytes_on_disk"),
            ("median step, ms", "{:.2f}", "step_ms"),
        ]
        lines = [f"{'':32}{'dense':>12}{'sparse':>12}{'sparse/dense':>15}"]
        for title, form, field in rows:
            dense, sparse = getattr(self.dense, field), getattr(self.sparse, field)
            lines.append(f"{title:32}{form.format(dense):>12}{form.format(sparse):>12}{sparse / dense:>15.3f}")
        reload = "is equal bit for bit" if self.reload_is_equal else "DIFFERS"
        folded = ["Before saving, the masks were folded into the weights: the file holds only what is kept."]
        return "\n".join(
            [
                f"{self.method} on {self.pattern}, density {self.density:g}",
                "",
                *lines,
                "",
                *STORED[self.storage],
                f"The masks moved {self.num_moves} times and visited {self.itop_rate:.1%} of their layers' weights.",
                *(folded if self.weights_were_folded else []),
                f"Saved, loaded into a fresh network: the output for every test image {reload}.",
                "",
                str(self.packed),
                "",
                self.mask_picture,
                "",
                "Written: " + ", ".join(self.files),
            ]
        )

    def to_json(self) -> str:
        """Return the numbers as a JSON object."""
        numbers = {key: value for key, value in asdict(self).items() if key != "mask_picture"}
        return json.dumps(numbers, indent=2)


def run(
    *,
    epochs: int = 30,
    density: float | None = None,
    pattern: str = "block:16",
    method: str | Method = "rigl",
    seed: int = 0,
    output: Path = Path("demo-output"),
    progress: Progress | None = None,
) -> DemoResult:
    """Train both networks on the same batches, save, reload, pack, and write everything to the folder `output`.

    The sparse network trains in compressed storage where its masks can.
    Without `density` it is the pattern's own, or else a tenth. A method given by name moves masks often enough for a
    run as short as this.
    """
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: train for at least one")
    check_seed(seed)
    digits = load_digits()
    steps = epochs * (len(digits.train_images) // BATCH_SIZE)
    dense, sparse = _network(seed), _network(seed)
    chosen = _moving_often(find_method(method), steps) if isinstance(method, str) else method
    amount = parse(pattern).density or DENSITY if density is None else density
    sparsifier = sparsify(
        sparse,
        {"*": pattern, "head": "dense"},
        density=amount,
        method=chosen,
        allocation="erk",
        steps=steps,
        seed=seed,
        track=True,
    )
    layers = sparse_layers(sparse)
    storage = "dense" if any(why_not_compressed(layer) for layer in layers.values()) else "compressed"
    if storage == "compressed":
        compress(layers)
    make_folder(output)
    step_ms = _train((dense, sparse), sparsifier, digits, epochs, seed, progress)

    dense_file, sparse_file, picture_file = (
        output / name for name in ("dense.safetensors", "sparse.safetensors", "masks.png")
    )
    with torch.no_grad():
        trained = sparse(digits.test_images)
    weights_were_folded = _fold_masks(sparse)
    save(dense, dense_file)
    save(sparse, sparse_file)
    again = _network(seed + 1)
    load(sparse_file, again)
    files = [dense_file, sparse_file, output / "result.json"]
    with torch.no_grad():
        reload_is_equal = torch.equal(trained, again(digits.test_images))
    try:
        draw_masks(sparse, picture_file)
        files.append(picture_file)
    except ImportError:
        logger.info("no picture of the masks: matplotlib is missing, pip install 'cutwork[report]'")
    result = DemoResult(
        dense=_side(dense, digits, dense_file, step_ms[0], None),
        sparse=_side(sparse, digits, sparse_file, step_ms[1], sparsifier.method),
        pattern=pattern,
        density=amount,
        method=type(chosen).__name__,
        storage=storage,
        num_moves=max(len(seen.turnovers) for seen in sparsifier.exploration.values()),
        itop_rate=sum(seen.itop_rate * seen.ever.numel() for seen in sparsifier.exploration.values())
        / sum(seen.ever.numel() for seen in sparsifier.exploration.values()),
        weights_were_folded=weights_were_folded,
        reload_is_equal=reload_is_equal,
        packed=_packed(again, digits.train_images[:BATCH_SIZE]),
        mask_picture=sketch_mask("second", sparse_layers(sparse)["second"].sparsity.mask),
        files=tuple(str(file) for file in files),
    )
    (output / "result.json").write_text(result.to_json() + "\n")
    return result


def _moving_often(method: Any, steps: int) -> Method:
    """Return a method that waits between moves with a wait that suits a short run."""
    every = min(STEPS_BETWEEN_MOVES, max(1, steps // 4))
    return replace(method, every=every) if getattr(method, "every", 1) > 1 else method


def _fold_masks(network: nn.Module) -> bool:
    """Drop the weights that lie hidden behind masks, so that the file needs not hold them; say whether there were any.

    A network that a method left dense in the end has none.
    """
    sparsities = {name: layer.sparsity for name, layer in sparse_layers(network).items()}
    if all(isinstance(held, Fixed | FixedIndex) or bool(held.mask.all()) for held in sparsities.values()):
        return False
    sparsify(network, {name: held.pattern for name, held in sparsities.items()}, masks=bake(network))
    return True


def _packed(network: nn.Module, images: Tensor) -> Packed:
    """Pack the network for a batch, and measure it beside its dense form."""
    dense = deepcopy(network)
    bake(dense)
    plan = pack(network, images, cache=False)
    measured = benchmark(network, against=dense, inputs=images, seconds=SECONDS)
    dense_row, packed_row = [row for row in measured.results.rows if row.what == "model"]
    return Packed(str(plan), dense_row.median_ms, packed_row.median_ms, measured.ratio)


def _network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[tuple[str, nn.Module]] = [
        ("flatten", nn.Flatten()),
        ("first", nn.Linear(64, WIDTH)),
        ("first_relu", nn.ReLU()),
        ("second", nn.Linear(WIDTH, WIDTH)),
        ("second_relu", nn.ReLU()),
        ("third", nn.Linear(WIDTH, WIDTH)),
        ("third_relu", nn.ReLU()),
        ("head", nn.Linear(WIDTH, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


def _train(
    networks: tuple[nn.Module, nn.Module],
    sparsifier: Sparsifier,
    digits: Digits,
    epochs: int,
    seed: int,
    progress: Progress | None,
) -> list[float]:
    """Train both networks in turn on every batch and return the median time of a step of each, in milliseconds."""
    optimizers = [torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE) for network in networks]
    sparsifier.attach(optimizers[1])
    generator = torch.Generator().manual_seed(seed)
    times: tuple[list[float], list[float]] = ([], [])
    steps = epochs * (len(digits.train_images) // BATCH_SIZE)
    done = 0
    for _ in range(epochs):
        order = torch.randperm(len(digits.train_images), generator=generator)
        for batch in order.split(BATCH_SIZE)[: len(order) // BATCH_SIZE]:
            losses = []
            for network, optimizer, taken in zip(networks, optimizers, times, strict=True):
                start = perf_counter()
                optimizer.zero_grad()
                loss = F.cross_entropy(network(digits.train_images[batch]), digits.train_labels[batch])
                loss.backward()
                optimizer.step()
                taken.append(1000 * (perf_counter() - start))
                losses.append(loss.item())
            done += 1
            if progress:
                progress(done, steps, f"loss dense {losses[0]:.3f}, sparse {losses[1]:.3f}")
    return [median(taken) for taken in times]


def _side(network: nn.Module, digits: Digits, file: Path, step_ms: float, method: Method | None) -> Side:
    with torch.no_grad():
        accuracy = float((network(digits.test_images).argmax(1) == digits.test_labels).float().mean())
    cost = flops(network, digits.test_images[:1])
    layers = sparse_layers(network).values()
    masks = {id(layer.trained): layer.sparsity.mask for layer in layers}
    # What a method learns besides the weights is no part of the network that it trains.
    besides = {id(parameter) for layer in layers for parameter in layer.sparsity.parameters()}
    return Side(
        accuracy=accuracy,
        parameters=sum(
            int(masks[id(parameter)].sum()) if id(parameter) in masks else parameter.numel()
            for parameter in network.parameters()
            if id(parameter) not in besides
        ),
        megaflops_forward=cost.sparse / 1e6,
        megaflops_training=(cost.dense_training if method is None else cost.sparse_training(method)) / 1e6,
        bytes_on_disk=file.stat().st_size,
        step_ms=step_ms,
    )
