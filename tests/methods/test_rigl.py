import math

import numpy as np
import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.methods import METHODS, RigL

EVERY, UNTIL, ALPHA, DENSITY = 4, 30, 0.3, 0.2


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 8))
    x, y = torch.randn(64, 20), torch.randint(0, 8, (64,))
    return model, x, y


def published_rigl(model, x, y, optimizer, steps):
    """Train by the published algorithm: plain tensors, numpy's sort, a mask multiplied in by hand.

    It says nothing of second moments, which begin at the mean over what was kept.
    """
    weights = [model[0].weight, model[2].weight]
    masks = []
    for weight in weights:
        order = np.argsort(-weight.detach().abs().numpy().ravel(), kind="stable")
        mask = np.zeros(weight.numel(), dtype=bool)
        mask[order[: round(DENSITY * weight.numel())]] = True
        masks.append(torch.from_numpy(mask).view(weight.shape))
        weight.data[~masks[-1]] = 0
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        dense = [weight.grad.clone() for weight in weights]
        for weight, mask in zip(weights, masks, strict=True):
            weight.grad[~mask] = 0
        optimizer.step()
        if step % EVERY or step >= UNTIL:
            continue
        fraction = ALPHA / 2 * (1 + math.cos(math.pi * (step / UNTIL)))
        for i, weight in enumerate(weights):
            kept = masks[i].numpy().ravel()
            number = int(fraction * kept.sum())
            size = np.where(kept, weight.detach().abs().numpy().ravel(), -np.inf)
            survivors = np.zeros_like(kept)
            survivors[np.argsort(-size, kind="stable")[: kept.sum() - number]] = True
            growth = np.where(survivors, -np.inf, dense[i].abs().numpy().ravel())
            new = survivors.copy()
            new[np.argsort(-growth, kind="stable")[:number]] = True
            old, masks[i] = masks[i], torch.from_numpy(new).view(weight.shape)
            fresh, state = masks[i] & ~old, optimizer.state[weight]
            moment = state.get("exp_avg_sq")
            usual = 0 if moment is None else torch.where(old, moment, 0).sum(dtype=torch.float64) / old.sum()
            for tensor in (weight.data, *(numbers for numbers in state.values() if numbers.shape == weight.shape)):
                tensor[fresh | ~masks[i]] = 0
            if moment is not None:
                moment[fresh] = usual.float()
    return weights, masks


@pytest.mark.parametrize(
    "build",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.3, momentum=0.9, weight_decay=1e-3),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    ],
    ids=["sgd", "adamw"],
)
def test_it_is_the_published_algorithm_bit_for_bit(build):
    model, x, y = problem()
    weights, masks = published_rigl(model, x, y, build(model.parameters()), steps=35)

    ours, x, y = problem()
    method = RigL(every=EVERY, until=UNTIL, fraction=cw.cosine(ALPHA))
    sparsifier = cw.sparsify(
        ours, "unstructured", density=DENSITY, method=method, track=True, init="magnitude", rescale=False
    )
    optimizer = build(ours.parameters())
    sparsifier.attach(optimizer)
    for _ in range(35):
        optimizer.zero_grad()
        nn.functional.cross_entropy(ours(x), y).backward()
        optimizer.step()
    for layer, weight, mask in zip((ours[0], ours[2]), weights, masks, strict=True):
        assert torch.equal(layer.sparsity.mask, mask)
        assert torch.equal(layer.weight, weight)
    assert sparsifier.exploration["0"].itop_rate > 1.2 * DENSITY


def test_it_moves_at_multiples_strictly_before_the_end():
    method = RigL(every=10, until=40, begin=10)
    assert [step for step in range(60) if method.due(step)] == [20, 30]


@pytest.mark.parametrize(("begin", "first_step"), [(0, 10), (5, 10), (10, 20), (25, 30)])
def test_the_first_move_may_exchange_another_fraction(begin, first_step):
    weight, grad = torch.arange(100.0).view(10, 10), torch.rand(10, 10)
    method = RigL(every=10, until=100, begin=begin, first=1.0, fraction=cw.constant(0.0))
    assert next(step for step in range(100) if method.due(step)) == first_step
    view = view_at(step=first_step, weight=weight, mask=weight >= 50, grad=grad)
    assert torch.equal(method.move(view), view.pattern.project(grad.abs(), 0.5))
    later = view_at(step=first_step + 10, weight=weight, mask=weight >= 50, grad=grad)
    assert torch.equal(method.move(later), later.mask)


@pytest.mark.parametrize("first", [-0.1, 1.1, "all"])
def test_a_first_fraction_that_is_no_share_is_refused(first):
    with pytest.raises(
        ValueError, match=r"^first=.* is the fraction that the first move exchanges; give 0 to 1, or None$"
    ):
        RigL(first=first)


def test_annealing_may_outlast_the_moves():
    method = RigL(every=1, until=50, anneal_until=100)
    weight = torch.arange(100.0).view(10, 10)
    view = view_at(step=49, weight=weight, mask=weight >= 50, grad=torch.rand(10, 10))
    moved = int((method.move(view) & ~view.mask).sum())
    assert 0 < moved <= int(cw.cosine(0.3)(0.49) * 50)
    assert int(cw.cosine(0.3)(0.98) * 50) == 0


def view_at(*, step, weight, mask, grad):
    from cutwork.methods import View, generator_for
    from cutwork.patterns import Unstructured
    from cutwork.sparsity.gradient import WholeGradient
    from cutwork.sparsity.layout import Layout
    from cutwork.sparsity.numbers import WholeNumbers

    numbers = WholeNumbers(Unstructured(), weight, mask, None if grad is None else WholeGradient(grad))
    return View(Unstructured(), 0.5, Layout.of(weight), numbers, None, step, generator_for(0, step, "a"), False)


def test_set_grows_by_chance_and_needs_no_gradient():
    method = METHODS["set"]()
    assert not method.needs_gradient
    assert method.dense_gradient_share == 0
    method = method.in_steps(1000)
    weight = torch.rand(10, 10)
    view = view_at(step=100, weight=weight, mask=weight > weight.median(), grad=None)
    new = method.move(view)
    assert new.sum() == view.mask.sum()
    assert torch.equal(new, method.move(view_at(step=100, weight=weight, mask=view.mask, grad=None)))
    assert not torch.equal(new, method.move(view_at(step=200, weight=weight, mask=view.mask, grad=None)))


def test_a_share_of_the_run_needs_its_length():
    assert RigL(until=0.75).in_steps(1000).until == 750
    with pytest.raises(ValueError, match=r"RigL\(until=0.75\) is a share of the run; pass steps"):
        RigL().in_steps(None)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        RigL(until=1.5).in_steps(1000)


@pytest.mark.parametrize("method", ["rigl", "set", "gradual", "granet", "srigl", "supermask", "ste"])
def test_every_zero_steps_is_refused(method):
    with pytest.raises(ValueError, match="at least 1"):
        METHODS[method](every=0)


def test_training_costs_follow_the_published_formula():
    assert RigL(every=100).dense_gradient_share == 1 / 101
    assert RigL(every=100, estimate=True).dense_gradient_share == 0


def test_the_estimate_of_the_gradient_finds_the_rows_and_columns_that_carry_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    method = RigL(every=1, until=10, estimate=True, fraction=cw.constant(0.5))
    sparsifier = cw.sparsify(model, "unstructured", density=0.1, method=method)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    sparsifier.attach(optimizer)
    x, wanted = torch.zeros(64, 16), torch.zeros(64, 16)
    x[:, 3], wanted[:, 7] = torch.randn(64), 100 * torch.randn(64)
    ((model(x) - wanted) ** 2).sum().backward()
    assert not model[0].weight.grad[~model[0].sparsity.mask].any()
    optimizer.step()
    assert model[0].sparsity.mask[7, 3]
