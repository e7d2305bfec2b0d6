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


@pytest.mark.parametrize("phases", [(0, 0), (5, 5), (6, 2), (0.5, 0.5), (0.9, 0.2), (0, 0.0), (-1, None)])
def test_a_run_that_would_never_be_sparse_is_refused(phases):
    with pytest.raises(ValueError, match="is never sparse"):
        Switch(Static(), *phases)


def test_so_is_one_whose_shares_leave_no_step_sparse():
    with pytest.raises(ValueError, match="is never sparse"):
        Switch(Static(), dense_from=0.004).in_steps(100)


def test_the_recipe_of_the_tile_paper_pulls_masked_weights_through_the_gradient_and_ends_dense():
    """Masks every 40 steps, the decay added to the gradient, and the last sixth dense, where nothing is pulled."""
    torch.manual_seed(0)
    model, plain = nn.Sequential(nn.Linear(8, 8, bias=False)), nn.Linear(8, 8, bias=False)
    sparsifier = cw.sparsify(model, "2:4-tile", method=Switch(srste(every=40, decay=0.1), dense_from=5 / 6), steps=240)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sparsifier.attach(optimizer)
    moves = []
    for step in range(240):
        weight, mask = model[0].weight.detach().clone(), model[0].sparsity.mask.clone()
        plain.weight = nn.Parameter(weight * mask)
        x = torch.randn(4, 8)
        (plain(x) ** 2).mean().backward()
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
        expected = weight - 0.5 * (plain.weight.grad + 0.1 * weight * ~mask)
        torch.testing.assert_close(model[0].weight.detach(), expected)
        moves += [step + 1] * (not torch.equal(model[0].sparsity.mask, mask))
    assert moves[-1] == 200
    assert {step % 40 for step in moves} == {0}
    assert model[0].sparsity.mask.all()


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_the_steps_of_the_switch_ask_for_no_dense_gradient(storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    method = Switch(RigL(every=2, until=10), sparse_from=4, dense_from=8)
    sparsifier = cw.sparsify(model, "block:4", density=0.25, method=method, storage=storage)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    read = []
    for step in range(1, 11):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().sum().backward()
        if model[0].sparsity.before_update(model[0].trained, 1.0, 0.1) is not None:
            read.append(step)
        optimizer.step()
    assert read == [6]
