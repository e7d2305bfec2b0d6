"""Layers of random shapes, masks and inputs, packed by measurement: is one of them ever slower than dense?"""

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from cutwork.bench.results import RANDOM, Measurement
from cutwork.bench.run import Candidate, Group, Runnable
from cutwork.speed.forms import TILES
from cutwork.speed.packing import pack
from cutwork.text import arrow
from cutwork.training.sparsify import sparsify

PACKED = "packed"
WIDTHS = (16, 48, 64, 100, 128, 256, 384, 500, 768, 1000, 1024, 2048, 3072)
TOKENS = (1, 2, 5, 16, 50, 128, 197, 512, 1024)
CHANNELS = (16, 32, 64, 100, 128, 256)
SIZES = (7, 8, 14, 28)
PATTERNS = (
    "block:4",
    "block:8",
    "block:16",
    "block:32",
    "block:64",
    "vector:8",
    "vector:16",
    "vector:64",
    "shuffled:16",
)
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
# How long `pack` measures a layer.
PACK_S = 0.3


def groups(count: int, seed: int) -> list[Group]:
    """Return so many layers to measure, each dense and as `pack` leaves it."""
    chance = random.Random(seed)
    return [_group(chance, number) for number in range(count)]


def summary(rows: Sequence[Measurement]) -> str:
    """Say how the packed layers did beside the dense ones."""
    packed = [row for row in rows if row.form.startswith(PACKED) and row.ratio]
    if not packed:
        return "no layer was measured to its end"
    worst = min(packed, key=lambda row: row.ratio or 0.0)
    tiles = [row for row in packed if row.form.endswith(TILES)]
    return (
        f"Of {len(packed)} layers {len(tiles)} were packed as tiles. The slowest packed layer, {worst.shape} in "
        f"{worst.pattern} at {worst.density:.2g} ({worst.form}), ran {worst.ratio:.2f}x as fast as dense."
    )


def _group(chance: random.Random, number: int) -> Group:
    pattern, density = chance.choice(PATTERNS), chance.choice(DENSITIES)
    if chance.random() < 0.7:
        inputs, outputs, tokens = chance.choice(WIDTHS), chance.choice(WIDTHS), chance.choice(TOKENS)
        title = f"linear {arrow(inputs, outputs)}"
        make = partial(_linear, inputs, outputs, tokens)
    else:
        channels, size, kernel = chance.choice(CHANNELS), chance.choice(SIZES), chance.choice((1, 3))
        outputs, stride, tokens = chance.choice(CHANNELS), chance.choice((1, 1, 2)), chance.choice((1, 4, 16))
        title = f"conv {arrow(channels, outputs)}@{size}x{size} k{kernel} s{stride}"
        make = partial(_conv, channels, outputs, size, kernel, stride, tokens)
    about = Measurement.dense(RANDOM, title, tokens, "forward")
    return Group(
        f"{title}, {tokens}, {pattern}, {density}",
        partial(_candidates, about, make, pattern, density, number),
        # A layer without its dense form would say nothing.
        is_essential=True,
    )


def _linear(inputs: int, outputs: int, tokens: int) -> tuple[nn.Module, Tensor]:
    return nn.Linear(inputs, outputs), torch.randn(tokens, inputs)


def _conv(channels: int, outputs: int, size: int, kernel: int, stride: int, batch: int) -> tuple[nn.Module, Tensor]:
    layer = nn.Conv2d(channels, outputs, kernel, stride, kernel // 2).to(memory_format=torch.channels_last)  # pyrefly: ignore
    return layer, torch.randn(batch, channels, size, size).contiguous(memory_format=torch.channels_last)


def _candidates(
    about: Measurement, make: Callable[[], tuple[nn.Module, Tensor]], pattern: str, density: float, seed: int
) -> list[Candidate]:
    torch.manual_seed(seed)
    layer, x = make()
    packed = nn.Sequential(copy.deepcopy(layer))
    try:
        sparsify(packed, pattern, density=density, init="random", rescale=False)
    except ValueError:
        # Too coarse for a layer this small, which would then be dense.
        sparsify(packed, "unstructured", density=density, init="random", rescale=False)
    mask = packed[0].sparsity.mask  # pyrefly: ignore
    dense = copy.deepcopy(layer)
    with torch.no_grad():
        dense.weight.mul_(mask)  # pyrefly: ignore
    kept = float(mask.double().mean())
    plan = pack(packed, x, seconds=PACK_S, cache=False)
    operations = 2.0 * mask.numel() * dense(x).numel() / mask.shape[0]

    def ready(module: nn.Module) -> Runnable:
        return Runnable(lambda: module(x), lambda: [module(x)])

    chosen = replace(
        about,
        pattern=plan.rows[0].pattern,
        density=kept,
        form=f"{PACKED}: {plan.rows[0].form}",
        ideal=1 / kept if kept else 1.0,
    )
    return [
        Candidate(about, lambda: ready(dense), ready(dense).results, operations),
        Candidate(chosen, lambda: ready(packed[0]), ready(dense).results, operations * kept),
    ]
