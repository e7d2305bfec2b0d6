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


def test_adam_makes_a_whole_step_of_a_decay_that_is_all_there_is():
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    nn.init.uniform_(model[0].weight, 0.2, 0.4)
    sparsifier = cw.sparsify(model, "2:4", method=srste(decay=2e-4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    sparsifier.attach(optimizer)
    mask, before = model[0].sparsity.mask.clone(), model[0].weight.detach().clone()
    (0 * model(torch.randn(4, 8))).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model[0].weight.detach(), before - 0.001 * ~mask, rtol=0, atol=1e-6)


@pytest.mark.parametrize("wrap", [lambda method: method, lambda method: cw.Switch(method, dense_from=0.5)])
def test_a_score_of_ones_own_that_needs_a_gradient_is_refused_at_once(wrap):
    def saliency(weight, grad, generator):
        return weight * grad

    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"keep=saliency fails without a gradient \(.*\), but .* pass cutwork"):
        cw.sparsify(model, "2:4", method=wrap(STE(keep=saliency)), steps=10)
    assert type(model[0]) is nn.Linear


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
