"""Which entries of a matrix of scores are kept: the largest of all, of a group, or of a 4x4 tile, or the best runs.

Scores are float32 or float64, and none of them is nan. The largest are kept; entries scored inf before all others, and
those scored -inf only where the rule leaves no other choice.
"""

from collections.abc import Callable, Iterator
from functools import cache, reduce
from itertools import combinations, product

import torch
import torch.nn.functional as F
from torch import Tensor

from cutwork.ops.dispatch import Decision

TILE = 4
# As many as stay in a cache while they are compared.
TILES_AT_ONCE = 16_384
# Up to so many neighbours are compared with each other; sorting takes longer.
FEW_NEIGHBOURS = 32


@Decision
def keep_largest(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` largest entries; of equal ones the first in row-major order.

    >>> keep_largest(torch.tensor([3., 1., 3., 3.]), 2)
    tensor([ True, False,  True, False])
    """
    flat = scores.flatten()
    if count >= flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(flat.numel() - count + 1).values
    above, reached = flat > threshold, flat >= threshold
    if int(reached.count_nonzero()) == count:
        return reached.view(scores.shape)
    ties = reached & ~above
    chosen = above | (ties & (ties.cumsum(0) <= count - above.count_nonzero()))
    return chosen.view(scores.shape)


@Decision
def keep_best_runs(scores: Tensor, allowed: Tensor, columns: int, count: int) -> Tensor:
    """Mark the entries of the `count` best runs of some rows; a run takes the best allowed entries its row has left.

    Only the last run of a row may have fewer than `columns` entries. A run is as good as the mean of its scores, summed
    in descending order, and no better than an earlier one of its row; of equally good ones the first is taken.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, allowed.gather(1, order).to(torch.uint8).argsort(dim=1, descending=True, stable=True))
    numbers = allowed.sum(1, keepdim=True)
    width = scores.shape[1]
    padding = (0, -width % columns)
    amounts = (numbers - torch.arange(0, width, columns, device=scores.device)).clamp(0, columns)
    is_there = torch.arange(width, device=scores.device) < numbers
    runs = F.pad(scores.gather(1, order).masked_fill(~is_there, 0), padding).unflatten(1, (-1, columns))
    # A run without entries comes last of all.
    means = (reduce(torch.add, runs.unbind(2)) / amounts).masked_fill(amounts == 0, -torch.inf).cummin(dim=1).values
    chosen = keep_largest(means, count).repeat_interleave(columns, 1)[:, :width] & is_there
    return torch.zeros_like(allowed).scatter(1, order, chosen)


@Decision
def keep_in_groups(scores: Tensor, n: int, m: int) -> Tensor:
    """Keep the `n` largest of every `m` neighbouring inputs; of equal ones the first.

    >>> keep_in_groups(torch.tensor([[1., 4., 4., 4.]]), 2, 4)
    tensor([[False,  True,  True, False]])
    """
    groups = scores.reshape(-1, m)
    if m > FEW_NEIGHBOURS:
        order = groups.argsort(dim=1, descending=True, stable=True)
        return torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, :n], True).view(scores.shape)
    places = groups.T.contiguous()
    beaten = torch.zeros_like(places, dtype=torch.int8)
    for apart in range(1, m):
        is_later_larger = places[:-apart] < places[apart:]
        beaten[:-apart] += is_later_larger
        beaten[apart:] += ~is_later_larger
    return (beaten < n).T.reshape(scores.shape)


@Decision
def keep_best_tiles(scores: Tensor, n: int) -> Tensor:
    """Keep `n` entries in each row and column of every 4x4 tile, so that their sum is the largest.

    The rows of a tile are summed from left to right, then the two upper and the two lower ones, then both sums, in the
    dtype of the scores; scores beyond a sixteenth of its largest number count as that. Of equal sums the choice that is
    first in row-major order wins. Only choices are compared that keep most of the entries scored inf and, of these,
    fewest of those scored -inf, by the sum of the others.
    """
    return _decide_tiles(scores, lambda entries: _find_best_tiles(entries, n))


@Decision
def keep_tiles_greedily(scores: Tensor, n: int) -> Tensor:
    """Take the entries of every 4x4 tile by descending score where fewer than `n` of their row and column are taken.

    Of equal scores that one comes first which a sorting network of Bose and Nelson puts last, as in PyTorch's operator
    for CUDA. An entry scored -inf is never taken.

    >>> tile = torch.tensor([[9., 1, 7, 4], [1, 2, 3, 0], [8, 3, 5, 4], [1, 2, 6, 2]])
    >>> (tile * keep_tiles_greedily(tile, 2)).int().tolist()
    [[9, 0, 7, 0], [0, 2, 0, 0], [8, 0, 0, 4], [0, 2, 6, 0]]
    """
    return _decide_tiles(scores, lambda entries: _find_greedily(entries, n))


def _decide_tiles(scores: Tensor, decide: Callable[[Tensor], Tensor]) -> Tensor:
    """Decide tiles some at a time: from their scores, an entry a row and a tile a column, to what is kept."""
    height, width = scores.shape[0] // TILE, scores.shape[1] // TILE
    entries = scores.reshape(height, TILE, width, TILE).permute(1, 3, 0, 2).reshape(TILE * TILE, -1)
    kept = torch.cat([decide(part) for part in entries.split(TILES_AT_ONCE, 1)], 1)
    return kept.view(TILE, TILE, height, width).permute(2, 0, 3, 1).reshape(scores.shape)


def _find_best_tiles(entries: Tensor, n: int) -> Tensor:
    is_infinite = entries.isinf()
    bound = torch.finfo(entries.dtype).max / (TILE * TILE)
    sums = _sums_of_tiles(entries.masked_fill(is_infinite, 0).clamp(-bound, bound), n)
    if is_infinite.any():
        # One scored inf outweighs as many scored -inf as there are.
        weights = (entries == torch.inf).to(entries.dtype) * TILE * TILE - (entries == -torch.inf).to(entries.dtype)
        most = reduce(torch.maximum, _sums_of_tiles(weights, n))
        numbers = _sums_of_tiles(weights, n)
        sums = (total.masked_fill(number < most, -torch.inf) for total, number in zip(sums, numbers, strict=True))
    best, at = next(sums), torch.zeros(entries.shape[1], dtype=torch.long, device=entries.device)
    for tile, total in enumerate(sums, 1):
        at.masked_fill_(total > best, tile)
        best = torch.maximum(best, total)
    return _legal_tiles(n).to(entries.device)[:, at]


def _sums_of_tiles(entries: Tensor, n: int) -> Iterator[Tensor]:
    """Yield for each legal tile the sum of its entries, of all tiles at once."""
    ways = _ways(n)
    rows = [
        [reduce(torch.add, (row[column] for column in way)) for way in ways] for row in entries.view(TILE, TILE, -1)
    ]
    upper, lower = (
        {(i, j): a + b for i, a in enumerate(one) for j, b in enumerate(two)} for one, two in (rows[:2], rows[2:])
    )
    for first, second, third, fourth in _legal_rows(n):
        yield upper[first, second] + lower[third, fourth]


def _find_greedily(entries: Tensor, n: int) -> Tensor:
    values = list(entries)
    places = [torch.full_like(value, place, dtype=torch.int32) for place, value in enumerate(values)]
    for low, high in _sorting_network(0, TILE * TILE):
        stay = values[low] < values[high]
        values[low], values[high] = torch.minimum(values[low], values[high]), torch.maximum(values[low], values[high])
        places[low], places[high] = (
            torch.where(stay, places[low], places[high]),
            torch.where(stay, places[high], places[low]),
        )
    # Two bits for each row and column, one for each entry.
    in_rows, in_columns, kept = (torch.zeros_like(places[0]) for _ in range(3))
    for value, place in zip(reversed(values), reversed(places), strict=True):
        row, column = (place >> 2) * 2, (place & 3) * 2
        fits = (((in_rows >> row) & 3) < n) & (((in_columns >> column) & 3) < n) & (value > -torch.inf)
        in_rows += fits << row
        in_columns += fits << column
        kept += fits << place
    return torch.stack([(kept >> place) & 1 for place in range(TILE * TILE)]).bool()


def _sorting_network(first: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the comparisons that sort so many numbers: both halves are sorted, then merged.

    Reference: Bose and Nelson, A sorting problem, 1962.
    """
    if size < 2:
        return
    half = size // 2
    yield from _sorting_network(first, half)
    yield from _sorting_network(first + half, size - half)
    yield from _merging_network(first, half, first + half, size - half)


def _merging_network(one: int, size: int, other: int, other_size: int) -> Iterator[tuple[int, int]]:
    if (size, other_size) == (1, 1):
        yield one, other
    elif (size, other_size) == (1, 2):
        yield one, other + 1
        yield one, other
    elif (size, other_size) == (2, 1):
        yield one, other
        yield one + 1, other
    else:
        half, other_half = size // 2, (other_size + 1 - size % 2) // 2
        yield from _merging_network(one, half, other, other_half)
        yield from _merging_network(one + half, size - half, other + other_half, other_size - other_half)
        yield from _merging_network(one + half, size - half, other, other_half)


def _ways(n: int) -> list[tuple[int, ...]]:
    return list(combinations(range(TILE), n))


@cache
def _legal_rows(n: int) -> list[tuple[int, ...]]:
    """Return every legal 4x4 tile as the ways of its rows, first in row-major order first."""
    ways = _ways(n)
    tiles = product(range(len(ways)), repeat=TILE)
    return [tile for tile in tiles if all(sum(column in ways[way] for way in tile) == n for column in range(TILE))]


@cache
def _legal_tiles(n: int) -> Tensor:
    """Return every legal 4x4 tile as a column of 16 entries, first in row-major order first."""
    ways = _ways(n)
    return torch.tensor([[column in ways[way] for way in tile for column in range(TILE)] for tile in _legal_rows(n)]).T
