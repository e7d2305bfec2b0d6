"""The demonstration: a network trained dense and sparse side by side, on digits of the package, and then packed."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutwork.bench.benchmark import benchmark
from cutwork.bench.choices import check_seed, make_folder
from cutwork.costs.flops import flops
from cutwork.costs.pictures import draw_in_text, draw_masks
from cutwork.data import load_data
from cutwork.data.images import Images
from cutwork.files.checkpoint import load, save
from cutwork.lab.demo_result import BATCH_SIZE, DemoResult, Packed, Side
from cutwork.layers.storage import compress, why_not_compress
from cutwork.layers.swap import sparse_layers
from cutwork.methods import Method, find_method
from cutwork.patterns import parse
from cutwork.sparsity.compressed import FixedIndex
from cutwork.sparsity.fixed import Fixed
from cutwork.speed.packing import pack
from cutwork.training.baking import bake
from cutwork.training.exploration import Exploration
from cutwork.training.sparsifier import Sparsifier
from cutwork.training.sparsify import sparsify

logger = logging.getLogger(__name__)

WIDTH = 512
LEARNING_RATE = 1e-3
DENSITY = 0.1
# The papers' 100 suits runs of many thousand steps; this one has 660.
STEPS_BETWEEN_MOVES = 20
# For the comparison of the packed network with a dense one.
SECONDS = 1.0
Progress = Callable[[int, int, str], None]


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
    digits = load_data("digits")
    steps = epochs * (len(digits.train_images) // BATCH_SIZE)
    chosen = _moving_often(find_method(method), steps) if isinstance(method, str) else method
    amount = parse(pattern).density or DENSITY if density is None else density
    dense, sparse = _build_network(seed), _build_network(seed)
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
    storage = _compress_if_possible(sparse)
    make_folder(output)
    dense_ms, sparse_ms = _train((dense, sparse), sparsifier, digits, epochs, seed, progress)

    dense_file, sparse_file, result_file = (
        output / name for name in ("dense.safetensors", "sparse.safetensors", "result.json")
    )
    answers = _answer(sparse, digits.test_images)
    weights_were_folded = _fold_masks(sparse)
    save(dense, dense_file)
    save(sparse, sparse_file)
    again = _build_network(seed + 1)
    load(sparse_file, again)
    explored = list(sparsifier.exploration.values())
    result = DemoResult(
        dense=_measure(dense, digits, dense_file, dense_ms, None, steps),
        sparse=_measure(sparse, digits, sparse_file, sparse_ms, sparsifier.method, steps),
        pattern=pattern,
        density=amount,
        method=type(chosen).__name__,
        storage=storage,
        num_moves=max(len(seen.turnovers) for seen in explored),
        itop_rate=_share_visited(explored),
        weights_were_folded=weights_were_folded,
        reload_is_equal=torch.equal(answers, _answer(again, digits.test_images)),
        packed=_pack(again, digits.train_images[:BATCH_SIZE]),
        mask_picture=draw_in_text("second", sparse_layers(sparse)["second"].sparsity.mask),
        files=tuple(map(str, (dense_file, sparse_file, result_file, *_draw(sparse, output / "masks.png")))),
    )
    result_file.write_text(result.to_json() + "\n")
    return result


def _build_network(seed: int) -> nn.Sequential:
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


def _moving_often(method: Any, steps: int) -> Method:
    """Return a method that waits between moves with a wait that suits a short run."""
    every = min(STEPS_BETWEEN_MOVES, max(1, steps // 4))
    return replace(method, every=every) if getattr(method, "every", 1) > 1 else method


def _compress_if_possible(network: nn.Module) -> str:
    """Turn the sparse layers to compressed storage if all of them can; return the storage they have."""
    layers = sparse_layers(network)
    if any(why_not_compress(layer) for layer in layers.values()):
        return "dense"
    compress(layers)
    return "compressed"


def _train(
    networks: tuple[nn.Module, nn.Module],
    sparsifier: Sparsifier,
    digits: Images,
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


def _fold_masks(network: nn.Module) -> bool:
    """Drop the weights that lie hidden behind masks, so that the file needs not hold them; say whether there were any.

    A network that a method left dense in the end has none.
    """
    sparsities = {name: layer.sparsity for name, layer in sparse_layers(network).items()}
    if all(isinstance(held, Fixed | FixedIndex) or bool(held.mask.all()) for held in sparsities.values()):
        return False
    sparsify(network, {name: held.pattern for name, held in sparsities.items()}, masks=bake(network))
    return True


def _draw(network: nn.Module, file: Path) -> list[Path]:
    """Draw the masks into a file, and return those written: none where the library is missing."""
    try:
        draw_masks(network, file)
    except ImportError:
        logger.info("no picture of the masks: matplotlib is missing, pip install 'cutwork[report]'")
        return []
    return [file]


@torch.no_grad()
def _answer(network: nn.Module, images: Tensor) -> Tensor:
    return network(images)


def _measure(network: nn.Module, digits: Images, file: Path, step_ms: float, method: Method | None, steps: int) -> Side:
    right = _answer(network, digits.test_images).argmax(1) == digits.test_labels
    cost = flops(network, digits.test_images[:1])
    layers = sparse_layers(network).values()
    masks = {id(layer.trained): layer.sparsity.mask for layer in layers}
    # What a method learns besides the weights is no part of the network that it trains.
    besides = {id(parameter) for layer in layers for parameter in layer.sparsity.parameters()}
    return Side(
        accuracy=float(right.float().mean()),
        parameters=sum(
            int(masks[id(parameter)].sum()) if id(parameter) in masks else parameter.numel()
            for parameter in network.parameters()
            if id(parameter) not in besides
        ),
        megaflops_forward=cost.sparse / 1e6,
        megaflops_training=(cost.dense_training if method is None else cost.sparse_training(method, steps)) / 1e6,
        bytes_on_disk=file.stat().st_size,
        step_ms=step_ms,
    )


def _share_visited(explored: Sequence[Exploration]) -> float:
    sizes = [seen.ever.numel() for seen in explored]
    return sum(seen.itop_rate * size for seen, size in zip(explored, sizes, strict=True)) / sum(sizes)


def _pack(network: nn.Module, images: Tensor) -> Packed:
    """Pack the network for a batch, and measure it beside its dense form."""
    dense = deepcopy(network)
    bake(dense)
    plan = pack(network, images, cache=False)
    measured = benchmark(network, against=dense, inputs=images, seconds=SECONDS)
    dense_row, packed_row = [row for row in measured.results.rows if row.what == "model"]
    return Packed(str(plan), dense_row.median_ms, packed_row.median_ms, measured.ratio)
