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


@pytest.mark.parametrize("decoupled", [False, True])
def test_a_decay_cannot_be_added_after_the_update(decoupled):
    model = nn.Sequential(nn.Linear(8, 8))
    sparsifier = cw.sparsify(model, "2:4", method=cw.srste(decoupled=decoupled))
    with pytest.raises(ValueError, match=r"0 has a decay of 0\.0002, which needs the gradient before every update"):
        sparsifier.attach(torch.optim.SGD(model.parameters(), lr=0.1), hooks=False)


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "sgd-foreach": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, foreach=True),
    "sgd-fused": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "adamw-foreach": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, foreach=True),
    "adamw-fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "adamw-tensor": lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.01)),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3),
}


def trained_for_steps(method, build, *, by_hand=0.0, steps=5):
    """Train, and without the method's help shrink what is outside the mask of each step by hand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    sparsifier = cw.sparsify(model, "2:4", method=method)
    optimizer = build(model.parameters())
    if not by_hand:
        sparsifier.attach(optimizer)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    for _ in range(steps):
        x = torch.randn(8, 16)

        def closure(x=x):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        masks = [layer.sparsity.mask.clone() for layer in model[::2]]
        optimizer.step(closure)
        if by_hand:
            with torch.no_grad():
                for layer, mask in zip(model[::2], masks, strict=True):
                    layer.weight -= float(optimizer.param_groups[0]["lr"]) * by_hand * layer.weight * ~mask
                    layer.sparsity.set_mask(cw.parse("2:4").project(layer.weight.abs(), 0.5))
        schedule.step()
    return model


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_decoupled_decay_shrinks_what_is_not_kept_after_each_update(optimizer):
    build = OPTIMIZERS[optimizer]
    expected = trained_for_steps(STE(), build, by_hand=0.5)
    model = trained_for_steps(srste(decay=0.5, decoupled=True), build)
    plain = trained_for_steps(STE(), build)
    for layer, other, without in zip(model[::2], expected[::2], plain[::2], strict=True):
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-5, atol=1e-7)
        assert torch.equal(layer.sparsity.mask, other.sparsity.mask)
        assert not torch.allclose(layer.weight, without.weight, rtol=1e-3)


def test_adam_is_not_moved_by_a_decoupled_decay():
    layer = nn.Linear(8, 8, bias=False)
    sparsifier = cw.sparsify(layer, "2:4", method=srste(decay=0.5, decoupled=True))
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    sparsifier.attach(optimizer)
    mask, before = layer.sparsity.mask.clone(), layer.weight.detach().clone()
    (0 * layer(torch.randn(4, 8))).sum().backward()
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before * (1 - 0.01 * 0.5 * ~mask))


def test_a_layer_that_an_update_passes_over_does_not_shrink():
    model = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    sparsifier = cw.sparsify(model, "2:4", method=srste(decay=0.5, decoupled=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    before = [layer.weight.detach().clone() for layer in model]
    model[0](torch.randn(4, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before[0])
    assert torch.equal(model[1].weight, before[1])


def test_each_layer_shrinks_by_the_rate_of_its_own_update():
    model = nn.ModuleList([nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)])
    sparsifier = cw.sparsify(model, "2:4", method=srste(decay=0.5, decoupled=True))
    optimizers = [torch.optim.SGD(layer.parameters(), lr=lr) for layer, lr in zip(model, (0.1, 0.3), strict=True)]
    sparsifier.attach(*optimizers)
    before = [layer.weight.detach().clone() for layer in model]
    masks = [layer.sparsity.mask.clone() for layer in model]
    sum((0 * layer(torch.randn(4, 8))).sum() for layer in model).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = 0.9
    for layer, weight, mask, lr in zip(model, before, masks, (0.1, 0.3), strict=True):
        torch.testing.assert_close(layer.weight.detach(), weight * (1 - lr * 0.5 * ~mask))


def test_a_decoupled_decay_needs_a_decay_and_a_learning_rate():
    with pytest.raises(ValueError, match="decoupled=True says how the decay acts, but decay=0 is none"):
        STE(decoupled=True)

    class Rateless(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

        def step(self, closure=None):
            return None

    layer = nn.Linear(8, 8)
    sparsifier = cw.sparsify(layer, "2:4", method=srste(decoupled=True))
    with pytest.raises(ValueError, match="decoupled decay, which is multiplied by the learning rate, and Rateless has"):
        sparsifier.attach(Rateless(layer.parameters()))
