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
    """Mark as exhaustive what of each grid lies off its diagonal, on which every value of every parameter stands."""
    grids: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("grid") and getattr(item, "callspec", None):
            grids[item.nodeid.partition("[")[0]].append(item)
    for cells in grids.values():
        # Each cell by the names of its values; of each parameter, the names in the order of its list.
        names = [cell.callspec._idlist for cell in cells]
        values = [list(dict.fromkeys(column)) for column in zip(*names, strict=True)]
        steps = range(max(map(len, values)))
        diagonal = {tuple(column[step % len(column)] for column in values) for step in steps}
        for cell, name in zip(cells, names, strict=True):
            if tuple(name) not in diagonal:
                cell.add_marker("exhaustive")
