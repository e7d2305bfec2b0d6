from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import cutwork as cw
from cutwork.transforms.budget import (
    Work,
    check_spent,
    doped_rank,
    factor_width,
    num_branches,
    round_to_units,
    solve_density,
    wide_width,
)

from ..published import ResNet

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


# Published budgets, and by base width the sparsity at which wide networks meet them.
NETS = {
    "resnet18-cifar": ([2, 2, 2, 2], 100, 32, 1_115_226_800, [0.4958, 0.7518, 0.9012, 0.9512, 0.9906]),
    "resnet18": ([2, 2, 2, 2], 1000, 224, 3_647_128_359, [0.5098, 0.7689, 0.9160, 0.9630, 0.9968]),
    "resnet34": ([3, 4, 6, 3], 1000, 224, 7_355_270_501, [0.5020, 0.7593, 0.9077, 0.9564, 0.9934]),
}
WIDTHS = [90, 128, 202, 286, 640]


@pytest.mark.parametrize("name", NETS)
def test_wide_networks_meet_the_published_budgets_at_the_known_sparsities(name):
    num_blocks, num_classes, side, budget, sparsities = NETS[name]
    with torch.device("meta"):
        old, x = ResNet(num_blocks, num_classes), torch.empty(1, 3, side, side)
        wider = [ResNet(num_blocks, num_classes, width) for width in WIDTHS]
    for new, sparsity in zip(wider, sparsities, strict=True):
        sparse = [name for name, layer in new.blocks.named_modules(prefix="blocks") if isinstance(layer, nn.Conv2d)]
        larger = cw.transforms.fit(old, new, x, sparse=sparse, counting="every-operation")
        assert larger.flops_before == budget
        assert larger.flops_after == pytest.approx(budget, rel=1e-3)
        assert [*larger.densities.values()] == pytest.approx([1 - sparsity] * len(sparse), abs=1e-4)


@given(st.lists(st.tuples(st.integers(10**7, 10**9), st.integers(0, 1000)), min_size=1, max_size=8), st.integers(1, 99))
def test_the_density_spends_the_budget(layers, percent):
    works = {str(at): Work(products, rest) for at, (products, rest) in enumerate(layers)}
    budget = round(sum(work.products * percent / 100 + work.rest for work in works.values()))
    density = solve_density(works, budget)
    spent = sum(work.at(density) for work in works.values())
    assert abs(spent - budget) <= len(works)
    check_spent(works, dict.fromkeys(works, density), budget)


@given(st.lists(st.integers(8, 200), min_size=2, max_size=6), st.integers(15, 95))
def test_whole_units_come_as_close_as_the_cheapest(numbers, percent):
    works = {str(at): Work(1000 * number) for at, number in enumerate(numbers)}
    budget = sum(work.products for work in works.values()) * percent // 100
    units = {str(at): number for at, number in enumerate(numbers)}
    densities = round_to_units(works, dict.fromkeys(works, percent / 100), units, budget)
    assert all(
        densities[name] * number == pytest.approx(round(densities[name] * number)) for name, number in units.items()
    )
    # Every unit costs a thousand here.
    assert abs(sum(work.at(densities[name]) for name, work in works.items()) - budget) <= 500 * len(works)


def test_a_model_that_stays_too_small_is_refused():
    with pytest.raises(ValueError, match="even with every weight the larger model needs"):
        solve_density({"a": Work(100)}, budget=200)


def test_nothing_sparse_pays_for_nothing():
    with pytest.raises(ValueError, match="no layer of the larger model is to be sparse"):
        solve_density({"a": Work(100, is_sparse=False)}, budget=200)


def test_layers_of_many_units_pay_for_those_that_have_one():
    works = {"one": Work(100), "many": Work(1000)}
    kept = round_to_units(works, {"one": 0.5, "many": 0.5}, {"one": 1, "many": 100}, budget=550)
    assert kept == {"one": 1.0, "many": 0.45}
