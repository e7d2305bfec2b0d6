import pytest

from cutwork.bench import linear
from cutwork.bench.layers import Choices, groups
from cutwork.bench.passes import TILE

TABLE = {
    "dense": {"fp32": ("forward", "step"), "bf16": ("forward",)},
    "compiled": {"fp32": ("forward",), "bf16": ("forward",)},
    "csr": {"fp32": ("forward",)},
    TILE: {"fp32": ("forward", "step"), "bf16": ("forward",)},
}
CHOSEN = {
    "patterns": ["block:4"],
    "densities": [0.25, 0.5],
    "precisions": ["fp32", "bf16"],
    "passes": ["forward", "step"],
    "forms": ["dense", "compiled", "csr", TILE],
}


def found(**options):
    return groups(linear.layers(shapes=["16x16"], tokens=[4]), TABLE, Choices(**CHOSEN | options))


def test_a_group_is_made_of_each_pass_that_the_tile_kernels_compute():
    works = [title.split(", ")[2:] for title in (group.title for group in found(patterns=["block:4", "vector:4"]))]
    assert works == [
        [work, precision, pattern]
        for precision, work in (("fp32", "forward"), ("fp32", "step"), ("bf16", "forward"))
        for pattern in ("block:4", "vector:4")
    ]
    with pytest.raises(ValueError, match=r"no kernel computes step in bf16; there are fp32 \(forward step\), bf16"):
        found(precisions=["bf16"], passes=["step"])


def test_a_group_compares_dense_forms_once_and_sparse_ones_at_each_density():
    rows = {
        (group.title.split(", ")[2], group.title.split(", ")[3]): [
            (candidate.row.form, candidate.row.precision, candidate.row.density) for candidate in group.candidates()
        ]
        for group in found()
    }
    base = ("dense", "fp32", 1.0)
    assert rows["forward", "fp32"] == [
        *(base, ("compiled", "fp32", 1.0)),
        *((form, "fp32", density) for density in (0.25, 0.5) for form in ("csr", TILE)),
    ]
    assert rows["step", "fp32"] == [base, (TILE, "fp32", 0.25), (TILE, "fp32", 0.5)]
    assert rows["forward", "bf16"] == [
        *(base, ("dense", "bf16", 1.0), ("compiled", "bf16", 1.0)),
        *((TILE, "bf16", density) for density in (0.25, 0.5)),
    ]


def test_a_pattern_too_coarse_for_the_densities_is_measured_once_and_said_so():
    (group,) = found(
        patterns=["block:64"], densities=[0.5, 0.2, 0.1], precisions=["fp32"], passes=["forward"], forms=[TILE]
    )
    dense, tile = group.candidates()
    assert tile.row.density == 1
    assert dense.note == "block:64 on linear 16->16 is too coarse: 0.5, 0.2, 0.1 all keep 1; one is measured."
