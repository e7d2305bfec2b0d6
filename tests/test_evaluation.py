import copy

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.evaluation import first_input, hooked, in_evaluation


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Merging(nn.Sequential):
    """Does work when its mode is set, and draws and breaks on request."""

    breaks = False

    def train(self, mode=True):
        raise AssertionError("the mode of a part was set through train()")

    def forward(self, x):
        x = super().forward(x + torch.rand_like(x))
        if self.breaks:
            raise RuntimeError("broken")
        return x


def half_frozen():
    torch.manual_seed(0)
    part = Merging(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.ReLU(), nn.Linear(16, 16))
    model = nn.Sequential(nn.BatchNorm1d(16), part)
    cw.sparsify(model, "block:8", density=0.5)
    cw.pack(model, forms="tiles")
    model[0].training = part[1].training = part[2].training = False
    return model


def compare(model, x):
    cw.benchmark(model, against=copy.deepcopy(model), inputs=x, seconds=0.01)


LOOKS = {
    "plan": lambda model, x: cw.plan(model, x, seconds=0.001),
    "plan for training": lambda model, x: cw.plan(model, x, seconds=0.001, training=True),
    "pack": lambda model, x: cw.pack(model, x, seconds=0.001),
    "fuse": cw.fuse,
    "flops": cw.flops,
    "every operation": lambda model, x: cw.flops(model, x, counting="every-operation"),
    "report": cw.report,
    "benchmark": compare,
}


@pytest.mark.parametrize("breaks", [False, True], ids=["runs", "breaks"])
@pytest.mark.parametrize("look", LOOKS)
def test_whoever_looks_at_a_model_leaves_modes_statistics_hooks_and_chance_as_they_were(look, breaks):
    model, x = half_frozen(), torch.rand(4, 16)
    model[1].breaks = breaks
    modes = {name: module.training for name, module in model.named_modules()}
    statistics = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    chance = torch.get_rng_state()
    if breaks:
        with pytest.raises(RuntimeError, match="broken"):
            LOOKS[look](model, x)
    else:
        LOOKS[look](model, x)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers() if name in statistics)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled()


def test_evaluation_records_no_gradient_and_ends_with_an_error():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
    with pytest.raises(ZeroDivisionError), in_evaluation(model):
        assert not model(torch.ones(1, 2)).requires_grad
        assert not any(module.training for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in model.modules()] == [True, True, False]


def test_hooks_see_inputs_given_by_name():
    layer, seen = nn.Linear(2, 3), []
    x = torch.ones(1, 2)
    with hooked([layer], after=lambda module, args, kwargs, output: seen.append((first_input(args, kwargs), output))):
        y = layer(input=x)
    with hooked([layer], before=lambda module, args, kwargs: seen.append(first_input(args, kwargs))):
        layer(x)
    layer(x)
    assert len(seen) == 2
    assert seen[0][0] is x and seen[0][1] is y and seen[1] is x
