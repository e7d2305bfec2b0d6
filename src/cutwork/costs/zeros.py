"""What order there is in the zeros of a weight: which patterns allow them, and along which axis."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import final

import numpy as np
import torch
from torch import Tensor

from cutwork.ops.selection import TILE
from cutwork.patterns import NM, Block, FreePattern, Pattern, Shuffled, TapBlock, parse
from cutwork.sparsity.layout import Layout

DENSE, EMPTY, UNSTRUCTURED = "dense", "empty", "unstructured"
INPUTS, OUTPUTS, BOTH, FLAT = "inputs", "outputs", "inputs and outputs", "the flattened kernel"
# Groups that hardware or papers know.
GROUPS = (2, 4, 8, 16)
# A mask that keeps much less than n of m is not meant as n:m, however few of a group happen to be left.
LEAST_SHARE = 0.9
# Of so many groups at most some may break a rule that is still worth naming.
MOST_BROKEN = 0.01
# The share of what is kept that may be zero by chance: numbers drawn in single precision hit it, halves round to it.
MOST_CHANCE = 0.001
# So many runs, or rows, are looked at before all of a matrix is, and so many columns of these.
SAMPLE, SAMPLE_WIDTH = 32, 2048


@final
@dataclass(frozen=True)
class Zeros:
    """The order in the zeros of one weight, seen as a matrix of outputs and inputs.

    `pattern` is the strictest that its zeros follow, as `parse` reads it, or "dense" without zeros and "empty" without
    anything else; `axis` says along which side n of m are kept. `also` names what holds besides, and `nearly` a rule
    that few groups break. Outputs and inputs that are zero as a whole are counted.
    """

    shape: tuple[int, ...]
    density: float
    pattern: str
    axis: str = ""
    also: tuple[str, ...] = ()
    nearly: str = ""
    empty_outputs: int = 0
    empty_inputs: int = 0

    @property
    def trains_as(self) -> str:
        """Return the pattern in which `sparsify` takes up a mask with these zeros."""
        return UNSTRUCTURED if self.axis in (OUTPUTS, FLAT) else self.pattern

    def __str__(self) -> str:
        """Say it in a few words."""
        along = f" along {self.axis}" if self.axis else ""
        return f"{self.pattern}{along}"


def find_order(weight: Tensor, layout: Layout | None = None) -> Zeros:
    """Return the order in the zeros of a weight, or of a mask, which has at least two dimensions.

    A mask is taken as it is. In a weight a few zeros may be chance, or have been rounded to: tiles on a grid are found
    all the same, if a thousandth of what they keep is zero or less, and so much is no order in a weight without others.

    >>> find_order(torch.tensor([[1., 0, 2, 0], [0, 3, 0, 4]]))
    Zeros(shape=(2, 4), density=0.5, pattern='1:2', axis='inputs', also=('2:4', '1:2 along outputs'), ...)
    >>> print(find_order(torch.eye(8).repeat_interleave(4, 0)))
    vector:4
    """
    shape = tuple(weight.shape)
    layout = layout or Layout(shape)
    kept = layout.to_matrix(weight.detach() != 0).contiguous()
    chance = 0.0 if weight.dtype == torch.bool else MOST_CHANCE
    density = int(kept.count_nonzero()) / kept.numel() if kept.numel() else 1.0
    empty = int((~kept.any(1)).sum()), int((~kept.any(0)).sum())
    if density == 0 or density >= 1 - chance:
        return Zeros(shape, density, DENSE if density else EMPTY, empty_outputs=empty[0], empty_inputs=empty[1])
    found = list(_orders(kept, layout, chance))
    (pattern, axis), *others = found or [(UNSTRUCTURED, "")]
    return Zeros(
        shape,
        density,
        pattern,
        axis,
        also=tuple(f"{each} along {side}" if side in (OUTPUTS, FLAT) else each for each, side in others),
        nearly="" if found else _nearly(kept),
        empty_outputs=empty[0],
        empty_inputs=empty[1],
    )


def mask_of(weight: Tensor, order: Zeros, layout: Layout | None = None) -> Tensor:
    """Return the mask that the zeros of a weight stand for: where they are in tiles, a tile is kept or dropped whole.

    >>> weight = torch.tensor([[1., 2, 0, 0], [3, 1e-60, 0, 0]])
    >>> mask_of(weight, Zeros((2, 4), 0.375, "block:2")).int()
    tensor([[1, 1, 0, 0],
            [1, 1, 0, 0]], dtype=torch.int32)
    """
    layout, kept = layout or Layout.of(weight), weight.detach() != 0
    if order.pattern in (DENSE, EMPTY):
        return torch.full_like(kept, order.pattern == DENSE)
    pattern = parse(order.trains_as)
    if not isinstance(pattern, FreePattern):
        return kept
    return layout.from_matrix(_fill(layout.to_matrix(kept), pattern))


def _orders(kept: Tensor, layout: Layout, chance: float) -> Iterator[tuple[str, str]]:
    """Yield the patterns that allow a mask, with the axis of those that have one; the most useful first."""
    turned = kept.T.contiguous()
    tile = _tile(kept, turned, layout.taps, chance)
    if tile is not None:
        yield str(tile), ""
    rows = tile.rows if isinstance(tile, Block | TapBlock) else 1
    if (size := _size_of_groups(kept)) > rows and size > 1:
        yield str(next(p for p in (Shuffled(size, size), Shuffled(size, 1)) if p.allows(kept))), ""
    along_inputs, along_outputs = _groups(kept), _groups(turned)
    both = [pattern for pattern in along_inputs if pattern.m == TILE and pattern in along_outputs]
    yield from ((str(replace(pattern, form="tile")), BOTH) for pattern in both)
    yield from ((str(pattern), INPUTS) for pattern in along_inputs if pattern not in both)
    yield from ((str(pattern), OUTPUTS) for pattern in along_outputs if pattern not in both)
    if layout.taps > 1 and not along_inputs:
        outputs, channels = layout.channels
        flat = kept.view(outputs, layout.taps, channels).transpose(1, 2).reshape(outputs, -1)
        yield from ((str(pattern), FLAT) for pattern in _groups(flat))


def _tile(kept: Tensor, turned: Tensor, taps: int, chance: float) -> Pattern | None:
    """Return the largest tiles on a grid that are kept or dropped whole; None where these are single weights."""
    rows = _largest_run(kept, chance)
    if taps > 1:
        by_tap = kept.view(len(kept), taps, -1)
        of_channels = by_tap.any(1)
        # With all taps of a kernel alike a tile spans channels only.
        if _is_filled(int(kept.count_nonzero()), taps * int(of_channels.count_nonzero()), chance):
            return TapBlock(rows, _largest_run(of_channels.T.contiguous(), chance), taps)
    columns = _largest_run(turned, chance)
    tile = Block(rows, columns)
    is_tile = rows * columns > 1 and _is_filled(
        int(kept.count_nonzero()), int(_fill(kept, tile).count_nonzero()), chance
    )
    return tile if is_tile else None


def _largest_run(kept: Tensor, chance: float) -> int:
    """Return the largest size so that rows, cut into runs of it from the first on, are alike in each run.

    All divisors of such a size are such sizes too. Of those below the whole only ones with small factors are found.
    """
    whole, number = len(kept), int(kept.count_nonzero())

    def fits(size: int) -> bool:
        # A few runs tell at once that most sizes do not fit.
        part = kept[: SAMPLE * size, :SAMPLE_WIDTH]
        if _count_filled(part, size) * LEAST_SHARE > int(part.count_nonzero()):
            return False
        return _is_filled(number, _count_filled(kept, size), chance)

    size = 1
    for factor in (2, 3, 5):
        while size * factor < whole and fits(size * factor):
            size *= factor
    return whole if size * 2 >= whole and fits(whole) else size


def _count_filled(kept: Tensor, size: int) -> int:
    """Return how many entries are kept if runs of so many rows are kept together wherever one of them is."""
    whole = len(kept) // size * size
    runs, rest = kept[:whole].reshape(-1, size, kept.shape[1]), kept[whole:]
    return size * int(runs.any(1).count_nonzero()) + len(rest) * int(rest.any(0).count_nonzero())


def _is_filled(number: int, filled: int, chance: float) -> bool:
    return number >= (1 - chance) * filled


def _fill(kept: Tensor, pattern: FreePattern) -> Tensor:
    """Keep all of each unit of which something is kept."""
    return pattern.spread(pattern.pool(kept.float()) > 0, kept.shape)


def _size_of_groups(kept: Tensor) -> int:
    """Return the largest size so that rows that are alike fall into groups of it, with one short one at most."""
    bits = np.packbits(kept.cpu().numpy(), axis=1)
    counts = np.unique(np.ascontiguousarray(bits).view(f"V{bits.shape[1]}"), return_counts=True)[1]
    sizes = sorted({math.gcd(*counts.tolist()), *(2**power for power in range(1, 9))}, reverse=True)
    return next((size for size in sizes if size <= len(kept) and np.count_nonzero(counts % size) <= 1), 1)


def _groups(kept: Tensor) -> list[NM]:
    """Return the n:m that a mask keeps along its rows, the strictest first, and what hardware asks for."""
    words, density, found = _count_words(kept), int(kept.count_nonzero()) / kept.numel(), []
    for size in GROUPS:
        if kept.shape[1] % size:
            continue
        most = int(_table(size)[words > 0].max())
        if 0 < most < size and density >= LEAST_SHARE * most / size:
            found.append(NM(most, size))
    # 2:4 is 4:8 too, which says nothing new; 1:2 is 2:4 too.
    strict = sorted(found, key=lambda pattern: (pattern.density, pattern.m))
    return [p for p in strict if (p.n, p.m) == (2, 4) or p is strict[0]]


def _nearly(kept: Tensor) -> str:
    """Say how many groups break 2:4, or 1:4, where they are few; empty where that is not what is meant."""
    if kept.shape[1] % 4:
        return ""
    words, density, number = _count_words(kept), int(kept.count_nonzero()) / kept.numel(), kept.numel() // 4
    for most in (1, 2):
        broken = int(words @ (_table(4) > most).sum(1))
        if broken <= MOST_BROKEN * number and density >= LEAST_SHARE * most / 4:
            return f"{most}:4 but for {broken:,} of {number:,} groups"
    return ""


def _count_words(kept: Tensor) -> np.ndarray:
    """Return how often each word of 16 bits stands in the rows of a mask, which are filled up with zeros."""
    bits = np.packbits(kept.cpu().numpy(), axis=1)
    if bits.shape[1] % 2:
        bits = np.pad(bits, ((0, 0), (0, 1)))
    return np.bincount(np.ascontiguousarray(bits).view(np.uint16).ravel(), minlength=2**16)


@cache
def _table(size: int) -> np.ndarray:
    """Return for each word of 16 bits how many are set in each of its groups of so many."""
    groups = np.arange(2**16, dtype=np.uint32)[:, None] >> np.arange(0, 16, size, dtype=np.uint32)
    return np.bitwise_count(groups & np.uint32(2**size - 1))
