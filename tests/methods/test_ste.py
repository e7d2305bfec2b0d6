import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.methods import STE, srste


def one_step(method, pattern="2:4"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    sparsifier = cw.sparsify(model, pattern, method=method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    x, before = torch.randn(4, 8), model[0].weight.detach().clone()
    mask = model[0].sparsity.mask.clone()
    model(x).square().sum().backward()
    optimizer.step()
    effective = (before * mask).requires_grad_()
    nn.functional.linear(x, effective).square().sum().backward()
    return model[0], before, mask, effective.grad


def test_the_whole_weight_gets_the_gradient_of_the_effective_one():
    layer, before, _, gradient = one_step(STE())
    assert torch.allclose(layer.weight, before - 0.1 * gradient, atol=1e-6)


def test_srste_pulls_what_is_not_kept_towards_zero():
    layer, before, mask, gradient = one_step(srste(decay=0.5))
    assert torch.allclose(layer.weight, before - 0.1 * (gradient + 0.5 * before * ~mask), atol=1e-6)


def test_the_mask_follows_the_weight():
    layer, *_ = one_step(STE())
    assert torch.equal(layer.sparsity.mask, cw.parse("2:4").project(layer.weight.detach().abs(), 0.5))
    assert torch.equal(layer.sparsity(layer.weight), layer.weight * layer.sparsity.mask)


def test_a_mask_can_be_renewed_more_seldom():
    layer, _, mask, _ = one_step(STE(every=2))
    assert torch.equal(layer.sparsity.mask, mask)


def test_every_step_costs_a_dense_gradient():
    assert STE().dense_gradient_share == 1
    assert not STE().needs_gradient


def test_a_decay_cannot_be_added_after_the_update():
    model = nn.Sequential(nn.Linear(8, 8))
    sparsifier = cw.sparsify(model, "2:4", method=cw.srste())
    with pytest.raises(ValueError, match=r"0 has a decay of 0\.0002, which joins the gradient before every update"):
        sparsifier.attach(torch.optim.SGD(model.parameters(), lr=0.1), hooks=False)
