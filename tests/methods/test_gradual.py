from itertools import pairwise

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.methods import Gradual, GraNet


def densities(method, steps, pattern="unstructured", density=0.1):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 40))
    sparsifier = cw.sparsify(model, pattern, density=density, method=method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    found, masks = [], []
    for _ in range(steps):
        model(torch.randn(8, 40)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(model[0].sparsity.mask.float().mean()))
        masks.append(model[0].sparsity.mask.clone())
    return found, masks


def test_density_follows_the_cubic_curve_and_ends_exactly():
    found, masks = densities(Gradual(every=2, until=9), 12)
    for step, density in enumerate(found, start=1):
        last_move = 9 if step >= 9 else step // 2 * 2
        expected = 0.1 + 0.9 * (1 - last_move / 9) ** 3
        assert density == pytest.approx(expected, abs=1 / 1600)
    assert found[-1] == pytest.approx(0.1)
    assert all((later <= earlier).all() for earlier, later in pairwise(masks))


@pytest.mark.parametrize("pattern", ["2:4", "2:4-tile", "2:4-tile-greedy", "1:4-tile-greedy", "block:4"])
def test_what_is_dropped_never_comes_back(pattern):
    density = 0.1 if pattern.startswith("block") else None
    found, masks = densities(Gradual(every=1, until=40), 44, pattern=pattern, density=density)
    assert all((later <= earlier).all() for earlier, later in pairwise(masks))
    assert cw.parse(pattern).allows(masks[-1])
    assert found[-1] == pytest.approx(cw.parse(pattern).density or 0.1, abs=0.15 if "greedy" in pattern else 1e-6)


def test_granet_regrows_while_it_thins_out():
    found, masks = densities(GraNet(every=2, until=20, thin_until=10), 20)
    assert found[0] == 0.5
    assert found[9:] == [pytest.approx(0.1)] * 11
    assert any((later & ~earlier).any() for earlier, later in pairwise(masks[:10]))
    assert any((later & ~earlier).any() for earlier, later in pairwise(masks[10:]))


def test_costs_and_needs():
    assert not Gradual().needs_gradient
    assert Gradual().dense_gradient_share == 0
    assert Gradual(drop=cw.taylor).needs_gradient
    assert Gradual(drop=cw.taylor, every=10).dense_gradient_share == 1 / 11
    assert GraNet(every=10).dense_gradient_share == 1 / 11
    assert GraNet(grow=cw.random).dense_gradient_share == 0
