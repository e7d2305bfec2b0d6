"""Every method trains on every pattern under every optimizer, and the masks stay what they say they are."""

import copy

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.methods import METHODS, Method, Switch
from cutwork.sparsity.fixed import Fixed

pytestmark = pytest.mark.grid

PATTERNS = [
    "unstructured", "block:4", "block:8x3", "block:4x3-taps", "vector:4", "shuffled:4", "shuffled:4x1", "2:4", "1:4",
    "2:4-tile", "2:4-tile-greedy",
]  # fmt: skip
STEPS = 6


def quick(name: str) -> Method:
    """Return a method of this name that moves several times in a few steps."""
    if name == "switch":
        return Switch(METHODS["rigl"](every=1, until=5), sparse_from=2, dense_from=6)
    if name == "spartan":
        return cw.Spartan(thin_until=3, until=6)
    options: dict = {"every": 2, "until": 6} if name in {"gradual", "set", "rigl", "dsb", "granet", "srigl"} else {}
    return METHODS[name](**options, **({"thin_until": 3} if name == "granet" else {}))


METHOD_NAMES = [*METHODS, "switch"]


class Orthogonal(torch.optim.Optimizer):
    """A Muon-like optimizer: momentum, then the nearest matrix with orthogonal rows, which is nowhere zero."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.mul_(0.9).add_(parameter.grad)
                update = momentum
                if parameter.ndim > 1:
                    u, _, v = torch.linalg.svd(momentum.flatten(1), full_matrices=False)
                    update = (u @ v).view_as(parameter)
                parameter.sub_(update, alpha=group["lr"])


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2, initial_accumulator_value=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.9, centered=True),
    "muon-like": lambda parameters: Orthogonal(parameters, lr=1e-2),
}


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(72, 16), nn.ReLU(),
        nn.Linear(16, 8),
    )  # fmt: skip


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("method_name", METHOD_NAMES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_trains_and_keeps_its_laws(pattern, method_name, optimizer_name):
    model = small_model()
    parsed = cw.parse(pattern)
    density = parsed.density or 0.3
    sparsifier = cw.sparsify(
        model, pattern, density=None if parsed.density else density, method=quick(method_name), track=True
    )
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    sparsifier.attach(optimizer)
    x, y = torch.randn(16, 4, 6, 6), torch.randint(0, 8, (16,))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        for layer in sparsifier.layers.values():
            check_at_rest(layer, optimizer)
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), f"{name} did not train"
    for layer in sparsifier.layers.values() if method_name != "switch" else ():
        check_density(layer, parsed, density, method_name)
    dynamic = method_name not in {"static", "ssb"}
    assert any(seen.turnovers for seen in sparsifier.exploration.values()) == dynamic


def check_at_rest(layer, optimizer):
    mask = layer.sparsity.mask
    assert mask.dtype == torch.bool
    assert mask.shape == layer.weight.shape
    if isinstance(layer.sparsity, Fixed):
        assert not layer.weight[~mask].any()
        # Adagrad starts its state at a constant, which nothing reads until a move resets it.
        for value in () if isinstance(optimizer, torch.optim.Adagrad) else optimizer.state[layer.weight].values():
            if isinstance(value, torch.Tensor) and value.shape == mask.shape:
                assert not value[~mask].any()
    else:
        assert layer.weight[~mask].any()
        assert not layer.sparsity(layer.weight)[~mask].any()


def check_density(layer, pattern, density, method_name):
    mask, pattern = layer.sparsity.mask_matrix(), pattern.for_kernel(layer.sparsity.layout.taps)
    assert pattern == layer.sparsity.pattern
    assert pattern.allows(mask)
    if str(pattern).startswith("shuffled") or str(pattern) == "2:4-tile-greedy":
        return
    if method_name == "srigl":
        # A constant fan-in leaves over what does not divide; every row that is not given up has at least one unit.
        assert int(pattern.units(mask).sum()) <= max(pattern.count(mask.shape, density), pattern.grid(mask.shape)[0])
    else:
        assert int(pattern.units(mask).sum()) == pattern.count(mask.shape, density)


@pytest.mark.parametrize("method_name", METHOD_NAMES)
def test_the_dense_twin_loads_by_key_and_computes_the_same(method_name):
    model = small_model()
    twin = copy.deepcopy(model)
    sparsifier = cw.sparsify(model, "block:4", density=0.3, method=quick(method_name))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    x = torch.randn(16, 4, 6, 6)
    for _ in range(4):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    sparse_output = model(x)
    if not isinstance(next(iter(sparsifier.layers.values())).sparsity, Fixed):
        cw.bake(model)
    state = {name: value for name, value in model.state_dict().items() if ".sparsity." not in name}
    twin.load_state_dict(state, strict=True)
    assert torch.equal(twin(x), sparse_output)


def test_a_mask_at_rest_is_never_recomputed():
    model = small_model()
    sparsifier = cw.sparsify(model, "block:4", density=0.3)
    layer = sparsifier.layers["4"]
    other = layer.sparsity.mask.flip(1).contiguous()
    layer.sparsity.mask.copy_(other)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    model(torch.randn(2, 4, 6, 6)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.sparsity.mask, other)
    assert not layer.weight[~other].any()


def test_newly_kept_weights_start_at_zero_with_no_momentum_and_the_usual_mean_square():
    model = nn.Sequential(nn.Linear(16, 16))
    sparsifier = cw.sparsify(model, "unstructured", density=0.3, method=cw.RigL(every=2, until=10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    old, usual = model[0].sparsity.mask.clone(), []
    optimizer.register_step_post_hook(
        lambda *_: usual.append(optimizer.state[model[0].weight]["exp_avg_sq"][old].mean())
    )
    sparsifier.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 16)).square().sum().backward()
        optimizer.step()
    new, stayed = model[0].sparsity.mask & ~old, model[0].sparsity.mask & old
    state = optimizer.state[model[0].weight]
    assert new.any()
    for tensor in (model[0].weight, state["exp_avg"]):
        assert not tensor[new].any()
        assert tensor[stayed].all()
    torch.testing.assert_close(state["exp_avg_sq"][new], usual[-1].expand(int(new.sum())))
    assert state["exp_avg_sq"][stayed].all()
