from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutwork.transforms.budget import doped_rank, factor_width, num_branches, wide_width

# Known sizes for 3x3 convolutions, by sparsity and channels. At 0.9 the published code returns one more for the width
# of square layers, because 1 - 0.9 is not a tenth in floating point.
CHANNELS = [(64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
SIZES = {
    0.5: [(116, 28), (210, 52), (231, 57), (419, 104), (461, 115), (838, 209), (922, 230)],
    0.75: [(231, 43), (419, 78), (461, 86), (838, 157), (922, 172), (1676, 314), (1844, 345)],
    0.9: [(576, 51), (1048, 94), (1152, 103), (2095, 188), (2304, 207), (4190, 377), (4608, 414)],
    0.95: [(1152, 54), (2095, 99), (2304, 109), (4190, 198), (4608, 218), (8379, 397), (9216, 437)],
}


@pytest.mark.parametrize("sparsity", SIZES)
def test_factor_widths_and_doped_ranks_are_the_known_ones(sparsity):
    found = [
        (factor_width(9 * inputs, outputs, 1 - sparsity), doped_rank(9 * inputs, outputs, 1 - sparsity))
        for inputs, outputs in CHANNELS
    ]
    assert found == SIZES[sparsity]


@pytest.mark.parametrize(
    ("sparsity", "width"), [(0.5, 90), (0.75, 128), (0.8, 143), (0.9, 202), (0.95, 286), (0.99, 640)]
)
def test_wide_base_widths_are_the_known_ones(sparsity, width):
    assert wide_width(64, 1 - sparsity) == width


@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 100))
def test_sizes_spend_the_budget_and_no_more(inputs, outputs, percent):
    density, dense = percent / 100, inputs * outputs
    exact = Fraction(percent, 100)
    assert exact * wide_width(inputs, density) ** 2 <= inputs**2 < exact * (wide_width(inputs, density) + 1) ** 2
    width = factor_width(inputs, outputs, density)
    assert exact * (width - 1) * (inputs + outputs) < dense <= exact * width * (inputs + outputs)
    rank = doped_rank(inputs, outputs, density)
    assert exact * dense + rank * (inputs + outputs) <= dense < exact * dense + (rank + 1) * (inputs + outputs)
    assert abs(num_branches(density) - 1 / exact) <= Fraction(1, 2)


@pytest.mark.parametrize("size", [lambda d: wide_width(64, d), num_branches, lambda d: doped_rank(8, 8, d)])
@pytest.mark.parametrize("density", [0, -0.1, 1.5])
def test_a_density_outside_its_range_is_refused(size, density):
    with pytest.raises(ValueError, match="is outside"):
        size(density)
