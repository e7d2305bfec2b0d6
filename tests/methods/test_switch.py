import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.methods import RigL, Static, Supermask, Switch, srste


def kept_by_step(method, steps=10, pattern="block:4"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    sparsifier = cw.sparsify(model, pattern, density=None if pattern == "2:4" else 0.25, method=method, steps=steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    found = [float(model[0].sparsity.mask.float().mean())]
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 16)).square().sum().backward()
        optimizer.step()
        found.append(float(model[0].sparsity.mask.float().mean()))
    return found


def test_the_70_30_recipe_trains_sparse_then_dense():
    assert kept_by_step(Switch(srste(), dense_from=0.7), pattern="2:4") == [0.5] * 7 + [1.0] * 4


@pytest.mark.parametrize("method", [Static(), RigL(every=2, until=9), Supermask()])
def test_dense_training_can_come_first(method):
    assert kept_by_step(Switch(method, sparse_from=4)) == [1.0] * 4 + [0.25] * 7


def test_it_speaks_for_the_method_inside():
    assert Switch(RigL(every=10)).dense_gradient_share == 1 / 11
    assert Switch(RigL()).needs_gradient
    assert Switch(RigL(every=1, until=0.5), dense_from=0.7).in_steps(10) == Switch(RigL(every=1, until=5), dense_from=7)
