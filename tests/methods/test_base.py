import numpy as np
import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.methods import generator_for
from cutwork.sparsity.compressed import index_of
from cutwork.sparsity.gradient import GradientOfKept, WholeGradient
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.numbers import KeptNumbers, WholeNumbers

BAD = [
    (lambda: cw.RigL(every=2.5), ValueError, "whole number"),
    (lambda: cw.RigL(every=100, until=75), ValueError, "never moves a mask: no multiple of 100"),
    (lambda: cw.RigL(until=1), ValueError, "1.0 is the whole run"),
    (lambda: cw.RigL(begin=500, until=100), ValueError, "never moves"),
    (lambda: cw.Gradual(begin=10, until=10), ValueError, "never moves"),
    (lambda: cw.Gradual(begin=-1, until=10), ValueError, "never moves"),
    (lambda: cw.RigL(fraction="0.3"), TypeError, r"fraction='0.3' is neither .* along a cosine, or cutwork.constant"),
    (lambda: cw.RigL(fraction=True), TypeError, "fraction=True is neither"),
    (lambda: cw.GraNet(fraction=1.5), ValueError, "fraction=1.5 must be a share of the kept units, from 0 to 1"),
    (lambda: cw.Gradual(start_density="0.5"), TypeError, "start_density='0.5' is no number; write 1.0"),
    (lambda: cw.SRigL(fraction=cw.constant(3.0)), ValueError, "from 0 to 1"),
    (lambda: cw.GraNet(fraction=cw.cosine(0.3, -1)), ValueError, "from 0 to 1"),
    (lambda: cw.RigL(grow="random"), TypeError, "grow='random' is no function"),
    (lambda: cw.STE(keep=None), TypeError, "keep=None is no function"),
    (lambda: cw.STE(keep=cw.taylor), ValueError, "keep=taylor needs a gradient"),
    (lambda: cw.STE(keep=cw.relative_gradient), ValueError, "keep=relative_gradient needs a gradient"),
    (lambda: cw.RigL(estimate=True, grow=cw.relative_gradient), ValueError, "all would be equal; grow by cutwork.grad"),
    (lambda: cw.STE(keep=cw.gradient), ValueError, "pass cutwork.magnitude, cutwork.energy, cutwork.random"),
    (lambda: cw.Gradual(start_density=5.0), ValueError, r"outside \(0, 1\]"),
    (lambda: cw.Supermask(start_density=0.0, until=5), ValueError, r"outside \(0, 1\]"),
    (lambda: cw.Supermask(weight_bits=1, transform=(1.0, 2.0, 3.0)), ValueError, "a pair, shift and scale"),
    (lambda: cw.Switch("rigl"), TypeError, "pass a method"),
]


@pytest.mark.parametrize(("build", "error", "message"), BAD)
def test_a_method_that_cannot_work_is_refused_when_it_is_written(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_short_last_stretch_still_reaches_the_end_of_gradual():
    assert cw.Gradual(every=100, until=50).due(50)


def test_frozen_weights_stay_frozen_under_a_supermask():
    model = nn.Sequential(nn.Linear(16, 16))
    model[0].requires_grad_(False)
    cw.sparsify(model, "block:4", density=0.5, method="supermask")
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize("build", [cw.RigL, cw.set_, cw.GraNet, cw.SRigL])
def test_a_number_as_fraction_falls_along_the_cosine_that_is_the_default(build):
    masks = []
    for fraction in (0.25, cw.cosine(0.25)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64))
        method = build(every=2, until=8, fraction=fraction)
        sparsifier = cw.sparsify(model, "vector:4", density=0.25, method=method, track=True, steps=8)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier.attach(optimizer)
        for step in range(8):
            optimizer.zero_grad()
            model(torch.randn(4, 64, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()
        masks.append(model[0].sparsity.mask)
        assert max(sparsifier.exploration["0"].turnovers) > 0
    assert torch.equal(*masks)


def test_numbers_of_numpy_are_numbers():
    method = cw.RigL(every=np.int64(10), begin=np.int64(0), until=np.float32(0.5), fraction=np.float32(0.5))
    assert method.in_steps(np.int64(100)) == cw.RigL(every=10, begin=0, until=50, fraction=np.float32(0.5))
    assert cw.Gradual(start_density=np.float32(0.5), until=np.int32(200)).due(np.int64(100))


def by_rank(weight, grad=None, generator=None):
    """Compare gradients with each other, which no part of the matrix could do alone."""
    return grad.abs().flatten().argsort().argsort().view(weight.shape).double()


def views(pattern):
    """Return one layer as two methods see it: with its whole weight, and with what is kept of it."""
    torch.manual_seed(0)
    pattern, weight, grad = cw.parse(pattern), torch.randn(23, 17).double(), torch.randn(23, 17).double()
    mask = pattern.project(weight.abs(), 0.4)
    weight, index = weight * mask, index_of(mask, pattern)

    class Given(GradientOfKept):
        has_exact_rows = False

        def is_finite(self):
            return True

        def rows(self, outputs, into=None):
            return grad[outputs]

        def kept(self, index):
            return index.gather(grad)

    whole = WholeNumbers(pattern, weight, mask, WholeGradient(grad))
    kept = KeptNumbers(pattern, index, index.gather(weight), Given())
    return [
        cw.View(pattern, 0.4, Layout.of(weight), numbers, None, 10, generator_for(0, 10, "a"), False)
        for numbers in (whole, kept)
    ]


def matrix(mask):
    return mask if isinstance(mask, torch.Tensor) else mask.to_mask()


@pytest.mark.parametrize("grow", [cw.gradient, cw.relative_gradient, cw.taylor, cw.random, by_rank])
@pytest.mark.parametrize("pattern", ["block:4", "block:5x3", "vector:4", "shuffled:4", "shuffled:4x2"])
def test_a_method_moves_the_same_mask_whatever_is_there_of_the_weight(pattern, grow):
    whole, kept = views(pattern)
    assert torch.equal(whole.kept, kept.kept)
    moved = [view.exchange(cw.magnitude, grow, 0.5) for view in (whole, kept)]
    assert isinstance(moved[0], torch.Tensor) and not isinstance(moved[1], torch.Tensor)
    assert torch.equal(moved[0], matrix(moved[1]))
    assert not torch.equal(moved[0], whole.mask) or grow is cw.taylor
    if grow is not cw.random:
        expected = whole.pattern.regrow(whole.mask, whole.score(cw.magnitude), whole.score(grow), 0.5)
        assert torch.equal(moved[0], expected)


@pytest.mark.parametrize("drop", [by_rank, cw.gradient, cw.taylor])
def test_shuffled_runs_are_dropped_by_any_score(drop):
    whole, kept = views("shuffled:4")
    moved = [matrix(view.exchange(drop, cw.gradient, 0.5)) for view in (whole, kept)]
    assert torch.equal(moved[0], moved[1]) and not torch.equal(moved[0], whole.mask)
    assert torch.equal(moved[0], whole.pattern.regrow(whole.mask, whole.score(drop), whole.score(cw.gradient), 0.5))


def test_shuffled_runs_may_grow_by_the_weight_alone():
    whole, kept = views("shuffled:4")
    moved = [matrix(view.exchange(cw.gradient, cw.magnitude, 0.5)) for view in (whole, kept)]
    assert torch.equal(moved[0], moved[1])
    expected = whole.pattern.regrow(whole.mask, whole.score(cw.gradient), whole.score(cw.magnitude), 0.5)
    assert torch.equal(moved[0], expected)


def test_a_gradient_whose_rows_are_exact_is_taken_as_it_is():
    whole, kept = views("block:4")
    formed = kept.grad
    kept = views("block:4")[1]
    type(kept.numbers.gradient).has_exact_rows = True
    assert torch.equal(kept.grad, whole.grad)
    assert torch.equal(kept.grad, formed)


@pytest.mark.parametrize("pattern", ["block:4", "vector:4", "shuffled:4"])
def test_units_are_scored_and_kept_on_the_grid_of_the_pattern(pattern):
    whole, kept = views(pattern)
    for score in (cw.magnitude, cw.gradient, cw.relative_gradient, cw.taylor, by_rank):
        expected = whole.pattern.pool(whole.score(score))
        for view in (whole, kept):
            torch.testing.assert_close(view.units(score), expected)
    fewer = whole.kept & (torch.rand(whole.kept.shape) < 0.5)
    assert torch.equal(matrix(whole.keep(fewer)), matrix(kept.keep(fewer)))
    assert torch.equal(matrix(kept.unmoved), whole.mask) and whole.unmoved is whole.mask


def test_a_gradient_that_is_not_finite_is_found_wherever_it_is():
    whole, kept = views("block:4")
    for view in (whole, kept):
        view.check_gradient()
        view.numbers.gradient.rows(slice(None))[22, 16] = torch.inf
    for look in (
        whole.check_gradient,
        lambda: whole.grad,
        lambda: kept.grad,
        lambda: kept.units(cw.gradient),
    ):
        with pytest.raises(ValueError, match="the gradient of step 10 is not finite, so the mask cannot move"):
            look()
