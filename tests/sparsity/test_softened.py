import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cutwork as cw
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.softened import Softened, find_thresholds


def make_softened(pattern="block:2", shape=(6, 8), density=0.5, dtype=torch.float64):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape, dtype=dtype))
    layout = Layout(shape)
    mask = cw.parse(pattern).project(layout.to_matrix(weight.detach()).abs(), density)
    return Softened(mask, layout, pattern=cw.parse(pattern), density=density).to(dtype), weight


@given(
    st.integers(2, 40).flatmap(
        lambda size: st.tuples(
            st.lists(st.lists(st.floats(0, 10), min_size=size, max_size=size), min_size=1, max_size=4),
            st.lists(st.integers(0, size), min_size=4, max_size=4),
        )
    ),
    st.sampled_from([0.1, 1.0, 20.0, 500.0]),
)
def test_shares_sum_to_the_number_of_units_that_are_kept_of_each_row(rows, sharpness):
    sizes = torch.tensor(rows[0], dtype=torch.float64)
    kept = torch.tensor(rows[1])[: len(sizes), None]
    shares = (sharpness * (sizes - find_thresholds(sizes, kept, sharpness))).sigmoid()
    torch.testing.assert_close(shares.sum(1, keepdim=True), kept.double(), rtol=1e-5, atol=1e-9)


def test_shares_are_the_optimal_transport_that_is_regularised_by_entropy():
    """Sinkhorn's iterations, as the paper has them, come to the same shares."""
    sizes, count, sharpness = torch.rand(50, dtype=torch.float64), 12, 7.0
    exponents, row = sharpness * sizes, torch.zeros(50, dtype=torch.float64)
    for _ in range(5000):
        column = math.log(count) - torch.logsumexp(exponents + row, 0)
        row = -torch.nn.functional.softplus(exponents + column)
    expected = (exponents + column + row).exp()
    threshold = find_thresholds(sizes[None], torch.tensor([[count]]), sharpness)
    torch.testing.assert_close((sharpness * (sizes - threshold[0])).sigmoid(), expected, rtol=1e-4, atol=1e-6)


def test_all_units_are_kept_whole_where_none_is_left_out():
    sparsity, weight = make_softened(density=1.0)
    sparsity.soften(weight, 5.0)
    assert torch.equal(sparsity(weight), weight)
    sparsity(weight).sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        ("block:2", (6, 8)),
        ("block:4", (6, 9)),
        ("unstructured", (4, 2, 3, 3)),
        ("vector:2", (6, 8)),
        ("2:4", (6, 8)),
        ("shuffled:2", (6, 8)),
    ],
)
def test_the_gradient_is_that_of_the_soft_weight_whose_threshold_follows(pattern, shape):
    sparsity, weight = make_softened(pattern, shape)
    sharpness = 3.0
    sparsity.soften(weight, sharpness)
    direction = torch.randn_like(weight)

    def soft(values):
        """Return what is computed without the cut, with a threshold found anew."""
        again = copy.deepcopy(sparsity)
        again.soften(values, sharpness)
        return values * again._shares(values)

    def along(step):
        return (soft(weight.detach() + step * direction) * mean).sum()

    mean = torch.randn_like(weight)
    (sparsity(weight) * mean).sum().backward()
    expected = (along(1e-4) - along(-1e-4)) / 2e-4
    assert float((weight.grad * direction).sum()) == pytest.approx(float(expected), rel=2e-3)


def test_what_is_multiplied_with_is_zero_outside_the_mask_and_smaller_than_the_weight_inside():
    sparsity, weight = make_softened()
    sparsity.soften(weight, 2.0)
    effective = sparsity(weight)
    assert not effective[~sparsity.mask].any()
    inside = (effective / weight)[sparsity.mask]
    assert bool(((inside > 0) & (inside < 1)).all())


def test_settling_changes_nothing_that_is_computed_and_keeps_the_gradient_inside():
    sparsity, weight = make_softened()
    sparsity.soften(weight, 4.0)
    before = sparsity(weight).detach()
    for _ in range(2):
        sparsity.settle(weight)
        torch.testing.assert_close(sparsity(weight).detach(), before)
    sparsity(weight).sum().backward()
    assert torch.equal(weight.grad, sparsity.mask.double())


def test_a_state_dict_brings_the_shares_along():
    sparsity, weight = make_softened()
    other, _ = make_softened()
    sparsity.soften(weight, 4.0)
    other.load_state_dict(sparsity.state_dict())
    assert torch.equal(other(weight), sparsity(weight))
    sparsity.settle(weight)
    other.load_state_dict(sparsity.state_dict())
    assert torch.equal(other(weight), weight * sparsity.mask)
