"""Which rows of a mask belong together."""

from functools import reduce

import numpy as np
import torch
from torch import Tensor

from cutwork.ops.dispatch import Decision
from cutwork.ops.topology import Topology

# Similarities are whole numbers, so that they are the same on every machine. A row's scale is one over the root of how
# many entries it keeps, in this unit.
ONE = 1 << 20


def group_rows(bits: Tensor, size: int) -> Tensor:
    """Return an order of rows of bits in which each run of `size` rows is alike; only the last may be shorter.

    Identical rows come together first. The others are grouped by the cosine of their masks: a group starts at the row
    that keeps most, and takes again and again the row that is nearest to all it has. The order is the same everywhere.

    >>> mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0]]).bool()
    >>> group_rows(pack(mask), 2).tolist()
    [1, 3, 2, 0, 4]
    """
    whole, rest = _fill_groups(_first_alike(bits), min(size, len(bits)))
    if len(rest) > size:
        rest = rest[count_kept(bits)[rest].argsort(descending=True, stable=True)]
        rest = rest[group_similar(bits[rest], size)]
    return torch.cat([whole, rest])


def pack(mask: Tensor) -> Tensor:
    """Return the rows of a mask as bits in bytes, on the CPU."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1))


def read_groups(mask: Tensor, size: int) -> Tensor:
    """Return an order of the rows of a mask in which each run of `size` rows is identical, as far as they are.

    The rows that are left over come last, as they come.
    """
    return torch.cat(_fill_groups(_first_alike(pack(mask)), min(size, len(mask)))).to(mask.device)


def settle_groups(topology: Topology) -> Topology:
    """Return the index of the same mask in the order that `read_groups` reads from it."""
    outputs, size = topology.shape[0], topology.rows
    order = torch.arange(outputs) if topology.order is None else topology.order.cpu().long()
    kept = topology.kept
    alike = torch.empty_like(order).index_copy_(0, order, _first_alike(pack(kept)).repeat_interleave(size)[:outputs])
    # Rows are known by the first that is like them, not by its group.
    first = torch.full((len(kept),), outputs).scatter_reduce_(0, alike, torch.arange(outputs), "amin")
    new = torch.cat(_fill_groups(first[alike], size))
    group = torch.empty_like(order).index_copy_(0, order, torch.arange(outputs) // size)[new[::size]]
    return Topology.from_kept(
        kept[group.to(kept.device)], topology.shape, size, topology.columns, new.to(topology.col.device)
    )


@Decision
def mean_of_groups(scores: Tensor, order: Tensor, size: int) -> Tensor:
    """Return the mean of each run of `size` rows in an order, summed in that order; the last may be shorter."""
    # One group at a time, which stays in a cache.
    return torch.stack([reduce(torch.add, scores[group]) / len(group) for group in order.long().split(size)])


@Decision
def mean_of_kept(scores: Tensor, tiles: Topology, order: Tensor, size: int) -> Tensor:
    """Return the same means of scores that only values of one column have; -inf where no row of a group has one.

    Where others of the group have one, what has none counts as the least of all.
    """
    least = float(scores.min()) if len(scores) else 0.0
    is_kept = tiles.to_mask()
    matrix = torch.where(is_kept, tiles.scatter(scores), least)
    return mean_of_groups(matrix, order, size).masked_fill(
        mean_of_groups(is_kept.float(), order, size) == 0, -torch.inf
    )


@Decision
def mark(chosen: Tensor, tiles: Topology) -> Tensor:
    """Return the mask of the chosen values as bits, as `pack` does."""
    return pack(tiles.scatter(chosen))


def _first_alike(bits: Tensor) -> Tensor:
    """Return for each row the first one that is identical."""
    numbers: dict[bytes, int] = {}
    return torch.tensor([numbers.setdefault(row.tobytes(), number) for number, row in enumerate(bits.numpy())])


def _fill_groups(first: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the rows that fill whole groups of those with the same number, group by group, and all other rows."""
    together = first.argsort(stable=True)
    first = first[together]
    sizes = torch.bincount(first, minlength=len(first))
    place = torch.arange(len(first)) - (sizes.cumsum(0) - sizes)[first]
    is_whole = place < (sizes // size * size)[first]
    return together[is_whole], together[~is_whole].sort().values


def read_bits(bits: Tensor, width: int, step: int) -> Tensor:
    """Return every so many entries of a mask of some width that has been packed."""
    entries = torch.arange(0, len(bits) * width, step)
    row = entries // width
    column = entries - row * width
    return (bits[row, column >> 3] << (column & 7).to(torch.uint8) & 128) > 0


def count_kept(bits: Tensor) -> Tensor:
    """Return how many bits of each row are set."""
    return torch.from_numpy(np.bitwise_count(bits.numpy()).sum(axis=1, dtype=np.int64))


def scale_of(bits: Tensor) -> Tensor:
    """Return a number for each row by which overlaps with it are multiplied to become similarities."""
    return (ONE / count_kept(bits).clamp(min=1).double().sqrt()).round().long()


@Decision
def group_similar(bits: Tensor, size: int) -> Tensor:
    """Return an order of rows of bits, as `pack` returns them, in which each run of `size` rows is similar.

    A group starts at the first row that is left; of equally near rows it takes the first. Needs memory for one number
    a pair of rows.
    """
    entries, scale = torch.from_numpy(np.unpackbits(bits.numpy(), axis=1)).float(), scale_of(bits)
    overlap = (entries @ entries.T).numpy()
    order: list[int] = []
    free = np.ones(len(bits), dtype=bool)
    while len(order) < len(bits):
        member, linkage = int(free.argmax()), np.zeros(len(bits), dtype=np.int64)
        for _ in range(min(size, len(bits) - len(order))):
            free[member] = False
            order.append(member)
            linkage += int(scale[member]) * overlap[member].astype(np.int64)
            member = int(np.where(free, linkage * scale.numpy(), -1).argmax())
    return torch.tensor(order)
