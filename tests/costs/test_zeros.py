"""The order in the zeros of a weight is found again, whatever made it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutwork.costs.zeros import find_order, mask_of
from cutwork.patterns import parse
from cutwork.sparsity.layout import Layout


def mask_in(pattern, shape, density=0.3, seed=0):
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    pattern = parse(pattern)
    return pattern.project(scores, pattern.density or density)


@pytest.mark.parametrize(
    ("pattern", "found", "axis"),
    [
        ("block:16", "block:16", ""),
        ("block:8x4", "block:8x4", ""),
        ("vector:16", "vector:16", ""),
        ("shuffled:16", "shuffled:16", ""),
        ("shuffled:8x1", "shuffled:8x1", ""),
        ("2:4", "2:4", "inputs"),
        ("1:4", "1:4", "inputs"),
        ("2:8", "2:8", "inputs"),
        ("3:16", "3:16", "inputs"),
        ("2:4-tile", "2:4-tile", "inputs and outputs"),
        ("unstructured", "unstructured", ""),
    ],
)
def test_the_pattern_of_a_mask_is_found_again(pattern, found, axis):
    order = find_order(mask_in(pattern, (128, 192)))
    assert (order.pattern, order.axis) == (found, axis)
    assert order.trains_as == found


@given(
    pattern=st.sampled_from(["unstructured", "block:4", "vector:4", "shuffled:4", "2:4", "2:4-tile", "block:3x5"]),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    density=st.floats(0.1, 0.9),
    seed=st.integers(0, 99),
)
def test_what_is_found_allows_the_mask(pattern, rows, columns, density, seed):
    mask = mask_in(pattern, (4 * rows, 4 * columns), density, seed)
    order = find_order(mask)
    if order.pattern in ("dense", "empty"):
        assert bool(mask.all()) == (order.pattern == "dense")
    else:
        parse(order.trains_as).check(mask.shape)
        assert parse(order.trains_as).allows(mask)


def test_along_outputs_it_is_no_pattern_of_ours_but_is_said():
    order = find_order(mask_in("2:4", (64, 32)).T)
    assert (str(order), order.trains_as) == ("2:4 along outputs", "unstructured")


def test_a_convolution_is_grouped_along_its_channels():
    layout = Layout((32, 16, 3, 3))
    order = find_order(layout.from_matrix(mask_in("2:4", layout.matrix_shape)))
    assert str(order) == "2:4 along inputs"
    flat = mask_in("2:4", layout.matrix_shape).view(layout.shape)
    assert str(find_order(flat)) == "2:4 along the flattened kernel"
    assert find_order(flat).trains_as == "unstructured"


def test_tiles_of_a_convolution_that_span_its_kernel_are_told_from_others():
    layout = Layout((32, 16, 3, 3))
    taps = mask_in("block:8-9taps", layout.matrix_shape)
    assert find_order(layout.from_matrix(taps)).pattern == "block:8-9taps"
    assert find_order(layout.from_matrix(mask_in("block:8", layout.matrix_shape))).pattern == "block:8"


def test_removed_outputs_and_inputs_are_counted():
    weight = torch.rand(24, 16) + 0.1
    weight[[1, 5, 6]] = 0
    order = find_order(weight)
    assert (order.pattern, order.empty_outputs, order.empty_inputs) == ("block:1x16", 3, 0)
    assert find_order(weight.T).empty_inputs == 3


def test_a_stricter_rule_names_what_hardware_asks_for_too():
    order = find_order(mask_in("1:2", (64, 64)))
    assert (order.pattern, order.also) == ("1:2", ("2:4",))


def test_few_groups_that_break_a_rule_are_counted():
    mask = mask_in("2:4", (64, 64))
    mask[0, :8] = True
    order = find_order(mask)
    assert order.pattern == "unstructured"
    assert order.nearly == "2:4 but for 2 of 1,024 groups"
    assert find_order(mask_in("unstructured", (64, 64), 0.5)).nearly == ""


@pytest.mark.parametrize("pattern", ["block:16", "vector:8", "block:8-9taps", "2:4"])
def test_a_kept_weight_that_is_zero_by_chance_hides_no_pattern(pattern):
    layout = Layout((64, 16, 3, 3))
    mask = layout.from_matrix(mask_in(pattern, layout.matrix_shape))
    weight = mask * (torch.rand(layout.shape) + 0.1)
    weight.view(-1)[mask.view(-1).nonzero()[5]] = 0
    order = find_order(weight)
    assert order.pattern == pattern
    assert torch.equal(mask_of(weight, order), mask if pattern != "2:4" else weight != 0)
    # Of a mask nothing is by chance.
    if pattern != "2:4":
        assert find_order(weight != 0).pattern == "unstructured"


def test_a_few_zeros_by_chance_are_no_pruning():
    weight = torch.rand(64, 64) + 0.1
    weight[3, 4] = 0
    assert find_order(weight).pattern == "dense"
    assert find_order(weight != 0).pattern == "unstructured"


def test_scattered_weights_are_no_groups_however_few_they_are():
    for density in (0.02, 0.1, 0.5):
        assert find_order(mask_in("unstructured", (256, 256), density)).pattern == "unstructured"


@pytest.mark.parametrize(("weight", "found"), [(torch.ones(4, 4), "dense"), (torch.zeros(4, 4), "empty")])
def test_weights_without_zeros_and_of_nothing_else_are_told(weight, found):
    assert find_order(weight).pattern == found
