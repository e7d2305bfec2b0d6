"""One thread per worker, hypothesis without deadlines, grids by their diagonals, and torchvision for all tests."""

from collections import defaultdict
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import settings

from cutwork.models.torchvision import import_torchvision

torch.set_num_threads(1)

# The first example of a test pays for caches and kernels, so a time limit for each one would only be flaky.
settings.register_profile("cutwork", deadline=None)
settings.load_profile("cutwork")

if find_spec("torchvision"):
    import_torchvision()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as exhaustive what of each grid holds only values that stand in cells before it, the diagonal first."""
    grids: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("grid") and hasattr(item, "callspec"):
            grids[item.nodeid.partition("[")[0]].append(item)
    for cells in grids.values():
        rows = [values_of(cell) for cell in cells]
        columns = [list(dict.fromkeys(column)) for column in zip(*rows, strict=True)]
        steps = range(max(map(len, columns)))
        diagonal = {tuple(column[step % len(column)] for column in columns) for step in steps}
        seen: set[Any] = set()
        # Where cells of the diagonal are missing, others stand in for them.
        for cell, row in sorted(zip(cells, rows, strict=True), key=lambda pair: pair[1] not in diagonal):
            values = {*enumerate(row)}
            if values <= seen:
                cell.add_marker("exhaustive")
            seen |= values


def values_of(cell: Any) -> tuple[Any, ...]:
    """Return what stands for the values of a cell: one for each list of parameters, whose names may be several."""
    lists = [mark.args[0] for mark in cell.iter_markers("parametrize")]
    names = [one.replace(" ", "").split(",") if isinstance(one, str) else one for one in lists]
    alone = cell.callspec.params.keys() - {name for together in names for name in together}
    # By identity, since not every value can be hashed, and cells share theirs.
    return tuple(
        tuple(id(cell.callspec.params[name]) for name in together)
        for together in [*names, *([n] for n in sorted(alone))]
    )
