import dataclasses
from itertools import product

import pytest
import torch
from torch import nn

import cutwork as cw


def prepared(method="static", pattern="unstructured", density: float | None = 0.25, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    return model, cw.sparsify(model, pattern, density=density, method=method, **options)


def train(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()


def test_an_optimizer_without_the_weights_is_refused():
    model, sparsifier = prepared()
    optimizer = torch.optim.SGD([model[0].bias], lr=0.1)
    with pytest.raises(ValueError, match=r"does not hold the weights of 2 layers \(first: 0\); build the optimizer"):
        sparsifier.attach(optimizer)


def test_an_optimizer_without_the_scores_is_refused():
    model = nn.Sequential(nn.Linear(16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = cw.sparsify(model, "block:4", density=0.5, method="supermask")
    with pytest.raises(ValueError, match="does not hold the score parameters of 1 layer "):
        sparsifier.attach(optimizer)


class Wrapper(torch.optim.Optimizer):
    """As accelerate and Lookahead wrap an optimizer: without calling the __init__ of their parent."""

    def __init__(self, inner):
        self.inner = inner
        self.param_groups, self.state = inner.param_groups, inner.state

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    def step(self, closure=None):
        return self.inner.step(closure)


def test_the_optimizer_inside_a_wrapper_is_followed():
    model, sparsifier = prepared(cw.set_(every=1, until=9), "block:4")
    before = model[0].sparsity.mask.clone()
    optimizer = Wrapper(Wrapper(torch.optim.SGD(model.parameters(), lr=0.1)))
    sparsifier.attach(optimizer)
    train(model, optimizer, 2)
    assert sparsifier.steps_done == 2 and not torch.equal(before, model[0].sparsity.mask)
    assert repr(sparsifier).endswith("attached to SGD)")


def test_lookahead_of_timm_moves_its_slow_weights_along():
    from timm.optim import Lookahead

    for storage in ("dense", "compressed"):
        model, sparsifier = prepared(cw.set_(every=2, until=9), "block:4", storage=storage)
        optimizer = Lookahead(torch.optim.AdamW(model.parameters(), lr=0.1), k=3)
        sparsifier.attach(optimizer)
        train(model, optimizer, 7)
        assert sparsifier.steps_done == 7
        assert all(layer.sparsity.fits(layer.trained) for layer in sparsifier.layers.values())


def test_an_optimizer_that_calls_no_hooks_is_refused():
    class Own(torch.optim.Optimizer):
        def __init__(self, parameters):
            self.param_groups, self.state = [{"params": list(parameters)}], {}

        def step(self, closure=None):
            return None

    model, sparsifier = prepared()
    with pytest.raises(ValueError, match="Own does not call torch's hooks around its updates"):
        sparsifier.attach(Own(model.parameters()))


@pytest.mark.parametrize("hooks", [True, False])
@pytest.mark.parametrize(
    ("change", "storage"), [*product(["replaced", "assigned"], ["dense", "compressed"]), ("normed", "dense")]
)
def test_a_weight_that_is_another_one_since_attach_is_noticed(change, storage, hooks):
    model, sparsifier = prepared(cw.set_(every=2, until=9), "block:4", storage=storage)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer, hooks=hooks)
    name = "weight" if storage == "dense" else "values"
    if change == "normed":
        nn.utils.parametrizations.weight_norm(model[0], name)
    elif change == "replaced":
        setattr(model[0], name, nn.Parameter(model[0].trained.detach().clone()))
    else:
        model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)
    with pytest.raises(ValueError, match=r"0: its weight is no longer the parameter that it was at attach\(\)"):
        model(torch.randn(4, 16)).sum().backward()
        optimizer.step()
        sparsifier.step()


def test_a_step_without_any_gradient_does_not_count():
    model, sparsifier = prepared(cw.RigL(every=1, until=9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    optimizer.step()
    assert sparsifier.steps_done == 0


@pytest.mark.parametrize("method", ["static", "supermask", "srste"])
def test_a_weight_that_is_read_past_its_layer_is_refused(method):
    model, sparsifier = prepared(method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    before = model[0].weight.detach().clone()
    nn.functional.linear(torch.randn(4, 16), model[0].weight).square().sum().backward()
    with pytest.raises(ValueError, match="0: something reads its weight without calling the layer"):
        optimizer.step()
    assert torch.equal(model[0].weight, before)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda view: view.mask.float(), "returned torch.float32"),
        (lambda view: view.mask[:1, :1], r"of shape \(1, 1\)"),
        (lambda view: view.mask.roll(1, 0), "cuts the units of block:4"),
    ],
)
def test_a_method_that_returns_no_mask_is_refused_before_anything_moves(returned, message):
    class Careless(cw.Method):
        def start(self, view, init):
            return view.pattern.project(view.score(init), view.density)

        def due(self, step):
            return True

        def move(self, view):
            return returned(view)

        needs_gradient = False
        dense_gradient_share = 0.0

    model, sparsifier = prepared(dataclasses.dataclass(frozen=True)(Careless)(), pattern="block:4")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    before = model[0].sparsity.mask.clone()
    with pytest.raises(ValueError, match=message):
        train(model, optimizer)
    assert torch.equal(model[0].sparsity.mask, before)


@pytest.mark.parametrize("wrong", [None, "adam", []])
def test_what_is_no_optimizer_is_refused(wrong):
    _, sparsifier = prepared()
    with pytest.raises(TypeError, match="is no torch optimizer"):
        sparsifier.attach(wrong)


def test_an_estimate_in_a_layer_that_became_too_narrow_is_refused():
    model, sparsifier = prepared(cw.RigL(every=2, until=9, estimate=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    model.half()
    with pytest.raises(ValueError, match=r"call half\(\) before sparsify"):
        model(torch.randn(4, 16, dtype=torch.float16)).square().sum().backward()
        optimizer.step()


def test_optimizer_state_that_is_not_floating_point_is_refused():
    class EightBit(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["code"] = torch.zeros_like(parameter, dtype=torch.uint8)

    model, sparsifier = prepared(cw.RigL(every=1, until=9))
    optimizer = EightBit(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    with pytest.raises(ValueError, match=r"0: EightBit keeps its state 'code' as torch.uint8"):
        train(model, optimizer)


def test_a_first_step_of_a_warm_up_with_learning_rate_zero_counts():
    model, sparsifier = prepared()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    sparsifier.attach(optimizer)
    train(model, optimizer)
    assert sparsifier.steps_done == 1
