import pytest
import torch

from cutwork.bench import conv, layers
from cutwork.bench.passes import PASSES
from cutwork.bench.run import worst_error

SMALL = {
    "shapes": ["6:10@5x7"],
    "kernels": [1, 2, 3],
    "strides": [1, 2],
    "batches": [2],
    "patterns": ["block:4", "vector:16", "shuffled:4"],
    "densities": [0.3],
    "precisions": ["fp32", "bf16"],
    "passes": list(PASSES),
    "forms": ["dense", "tile"],
}
ONE = {"kernels": [3], "strides": [1], "patterns": ["block:16"], "densities": [0.5], "precisions": ["fp32"]}


def conv_groups(*, shapes, kernels, strides, batches, **options):
    found = conv.layers(shapes=shapes, kernels=kernels, strides=strides, batches=batches)
    return layers.groups(found, conv.CONV_FORMS, layers.Choices(**options))


def test_all_passes_of_all_patterns_and_precisions_are_equal_to_the_dense_ones():
    for group in conv_groups(**SMALL):
        candidates = group.candidates()
        assert len(candidates) == (2 if "fp32" in group.title else 3)
        for candidate in candidates:
            with torch.no_grad():
                results = candidate.build().results()
                error = worst_error(results, candidate.expected())
            assert error < (1e-5 if candidate.row.precision == "fp32" else 1e-2)
            assert len(results) == (4 if candidate.row.work == "step" else 1)


def test_operations_and_bytes_are_those_of_what_is_kept():
    (group,) = conv_groups(**SMALL | ONE | {"shapes": ["32:64@8x6"], "strides": [2], "passes": ["forward"]})
    dense, tile = group.candidates()
    assert dense.row.shape == "32->64@8x6 3x3/2"
    assert dense.operations == 2 * (2 * 4 * 3) * 32 * 64 * 9
    assert dense.bytes == 4 * (2 * 32 * 8 * 6 + 2 * 64 * 4 * 3 + 32 * 64 * 9)
    assert tile.operations == dense.operations / 2


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"shapes": ["64x32"]}, "unknown shape '64x32'; write channels@heightxwidth, for example 64@32x32"),
        ({"shapes": ["64:0@3x3"]}, "unknown shape '64:0@3x3'"),
        ({"kernels": [0]}, "kernel 0; give at least 1"),
        ({"densities": [1.5]}, "density=1.5 is outside"),
    ],
)
def test_a_wrong_choice_says_so_before_anything_is_measured(choice, message):
    with pytest.raises(ValueError, match=message):
        conv_groups(**SMALL | choice)
