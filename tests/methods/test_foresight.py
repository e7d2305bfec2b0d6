import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import cutwork as cw


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


X, Y = torch.randn(7, 6, generator=torch.Generator().manual_seed(1)).double(), torch.arange(7) % 3


def loss(model):
    return F.cross_entropy(model(X), Y)


def weights_of(model):
    return [model[number].weight for number in (0, 2, 4)]


def slopes_of(model, value=loss):
    return torch.autograd.grad(value(model), weights_of(model))


def assert_close(found, expected):
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("init", [cw.snip(loss), cw.force(loss)])
def test_snip_and_force_look_at_the_gradient(init):
    model = network()
    assert_close(init.look(model, weights_of(model)), slopes_of(model))
    assert torch.equal(init.score(torch.tensor([2.0, -1.0]), torch.tensor([-3.0, 0.5]), None), torch.tensor([6.0, 0.5]))


def test_grasp_looks_at_the_hessian_times_the_gradient():
    model = network()
    shapes = [weight.shape for weight in weights_of(model)]

    def value(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        names = ("0.weight", "2.weight", "4.weight")
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return F.cross_entropy(functional_call(model, weights, X), Y)

    flat = torch.cat([weight.detach().flatten() for weight in weights_of(model)])
    slope = torch.cat([each.flatten() for each in slopes_of(model)])
    product = torch.autograd.functional.hessian(value, flat) @ slope
    init = cw.grasp(loss)
    found = init.look(model, weights_of(model))
    torch.testing.assert_close(torch.cat([each.flatten() for each in found]), product)
    # Without what scores highest the gradient would shrink most, to first order.
    scores = torch.cat(
        [init.score(w.detach(), h, None).flatten() for w, h in zip(weights_of(model), found, strict=True)]
    )
    torch.testing.assert_close(scores, flat * product)


def test_grasp_finds_no_curvature_where_the_loss_is_linear():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3))
    weights = [model[0].weight, model[1].weight]

    def value(model):
        x = torch.ones(2, 4)
        return model[0](x).square().sum() + model[1](x).sum()

    curved, straight = cw.grasp(value).look(model, weights)
    assert curved.any()
    assert torch.equal(straight, torch.zeros(3, 4))
    assert cw.grasp(lambda model: model[0](torch.ones(2, 4)).square().sum()).look(model, weights)[1] is None


def test_grasp_differentiates_attention_twice():
    x = torch.randn(1, 2, 5, 8)
    model = nn.Linear(8, 8)

    def value(model):
        return F.scaled_dot_product_attention(model(x), model(x), x).square().sum()

    (found,) = cw.grasp(value).look(model, [model.weight])
    assert found.isfinite().all()
    assert found.any()


@pytest.mark.parametrize("init", [cw.snip, cw.grasp])
def test_losses_that_are_yielded_add_up_also_where_some_do_not_depend_on_a_weight(init):
    model = network()

    def yielding(model):
        yield model[0](X).sin().sum()
        yield loss(model)
        yield model[2:](X[:, :5]).sin().sum()

    found = init(yielding).look(model, weights_of(model))
    assert_close(found, init(lambda model: sum(yielding(model))).look(model, weights_of(model)))
    alone = cw.snip(lambda model: model[0](X).sin().sum()).look(model, weights_of(model))
    assert [each is None for each in alone] == [False, True, True]


def test_synflow_sums_all_paths_in_double_precision():
    model = network().float().train()
    expected = [weight.detach().abs().double() for weight in weights_of(model)]
    init = cw.synflow(torch.randn(1, 6))
    init.prepare(model)
    assert not model.training
    assert_close([weight.detach() for weight in weights_of(model)], expected)
    assert_close(
        init.look(model, weights_of(model)), slopes_of(model, lambda model: model(torch.ones(1, 6).double()).sum())
    )


BAD = {
    "a number": (lambda model: 3.0, TypeError, "returns a tensor, or yields tensors; got float"),
    "numbers": (lambda model: [3.0], TypeError, "a tensor of one number; got float; add it up"),
    "many": (lambda model: model(X), TypeError, r"a tensor of one number; got one of shape \[7, 3\]; add it up"),
    "nothing": (lambda model: iter(()), ValueError, "yields nothing; let it yield the loss of at least one batch"),
    "another": (
        lambda model: network().requires_grad_(False)(X).sum(),
        ValueError,
        "does not depend on the weights of the model that it was given; call that model in it",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_loss_that_is_none_is_refused(case):
    value, error, message = BAD[case]
    model = network()
    with pytest.raises(error, match=message):
        cw.snip(value).look(model, weights_of(model))


@pytest.mark.parametrize("rounds", [0, 1.5, True])
def test_rounds_are_a_number(rounds):
    with pytest.raises(ValueError, match=rf"synflow\(rounds={rounds}\): .* a whole number, at least 1"):
        cw.synflow(torch.ones(1, 3), rounds=rounds)


def test_synflow_needs_shapes():
    with pytest.raises(ValueError, match=r"synflow got no inputs, whose shapes it needs; write synflow\(torch.ones"):
        cw.synflow()
