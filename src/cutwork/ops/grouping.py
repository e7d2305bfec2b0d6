"""Which rows of a mask belong together."""

import numpy as np
import torch
from torch import Tensor

from cutwork.ops.dispatch import Decision

# Similarities are whole numbers, so that they are the same on every machine. A row's scale is one over the root of how
# many entries it keeps, in this unit.
ONE = 1 << 20


def group_rows(mask: Tensor, size: int) -> Tensor:
    """Return an order of the rows of a mask in which each run of `size` rows is alike; only the last may be shorter.

    Identical rows come together first. The others are grouped by the cosine of their masks: a group starts at the row
    that keeps most, and takes again and again the row that is nearest to all it has. The order is the same everywhere.

    >>> mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 0]]).bool()
    >>> group_rows(mask, 2).tolist()
    [1, 3, 2, 0, 4]
    """
    on_cpu = mask.cpu()
    whole, rest = _identical(on_cpu, size)
    if len(rest) > size:
        rest = rest[count_kept(on_cpu)[rest].argsort(descending=True, stable=True)]
        rest = rest[group_similar(on_cpu[rest], size)]
    return torch.cat([whole, rest]).to(mask.device)


def read_groups(mask: Tensor, size: int) -> Tensor:
    """Return an order of the rows of a mask in which each run of `size` rows is identical, as far as they are.

    The rows that are left over come last, as they come.
    """
    return torch.cat(_identical(mask.cpu(), size)).to(mask.device)


def _identical(mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the rows that fill whole groups of identical ones, group by group, and all other rows."""
    size = min(size, len(mask))
    numbers: dict[bytes, int] = {}
    packed = np.packbits(mask.numpy(), axis=1)
    first = torch.tensor([numbers.setdefault(row.tobytes(), number) for number, row in enumerate(packed)])
    together = first.argsort(stable=True)
    first = first[together]
    sizes = torch.bincount(first, minlength=len(first))
    place = torch.arange(len(first)) - (sizes.cumsum(0) - sizes)[first]
    is_whole = place < (sizes // size * size)[first]
    return together[is_whole], together[~is_whole].sort().values


def count_kept(mask: Tensor) -> Tensor:
    """Return how many entries each row of a mask keeps."""
    # PyTorch sums bools as slowly as it adds 64-bit numbers.
    return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1))


def scale_of(mask: Tensor) -> Tensor:
    """Return a number for each row by which overlaps with it are multiplied to become similarities."""
    return (ONE / count_kept(mask).clamp(min=1).double().sqrt()).round().long()


@Decision
def group_similar(mask: Tensor, size: int) -> Tensor:
    """Return an order of the rows of a mask in which each run of `size` rows is similar.

    A group starts at the first row that is left; of equally near rows it takes the first. Needs memory for one number
    a pair of rows.
    """
    entries, scale = mask.float(), scale_of(mask)
    overlap = (entries @ entries.T).numpy()
    order: list[int] = []
    free = np.ones(len(mask), dtype=bool)
    while len(order) < len(mask):
        member, linkage = int(free.argmax()), np.zeros(len(mask), dtype=np.int64)
        for _ in range(min(size, len(mask) - len(order))):
            free[member] = False
            order.append(member)
            linkage += int(scale[member]) * overlap[member].astype(np.int64)
            member = int(np.where(free, linkage * scale.numpy(), -1).argmax())
    return torch.tensor(order)
