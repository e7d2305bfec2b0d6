import copy
from collections import UserDict

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


class Attending(nn.Module):
    """Takes its inputs as models of transformers do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)
        self.activation = nn.GELU()

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return self.second(self.activation(input=self.first(input_ids * attention_mask)))


CALLS = {
    "all by name": lambda x, mask: ({"input_ids": x, "attention_mask": mask},),
    "some by name": lambda x, mask: (x, {"attention_mask": mask}),
    "as tokenizers return it": lambda x, mask: (UserDict(input_ids=x, attention_mask=mask),),
    "in order": lambda x, mask: (x, mask),
    "in order, with nothing by name": lambda x, mask: (x, mask, {}),
}


@pytest.mark.parametrize("call", CALLS)
def test_everybody_takes_inputs_by_name(call):
    torch.manual_seed(0)
    inputs = CALLS[call](torch.rand(4, 16), torch.ones(4, 16))
    model = Attending()
    proposal = cw.plan(model, *inputs, speedup=1.01, patterns="block:8", densities=0.5, seconds=0.001)
    assert [row.input for row in proposal.rows] == [(4, 16), (4, 32)]
    cw.sparsify(model, "block:8", density=0.5)
    assert [row.input for row in cw.plan(model, *inputs, seconds=0.001).rows] == [(4, 16), (4, 32)]
    dense = copy.deepcopy(model)
    cw.bake(dense)
    assert [row.calls for row in cw.pack(model, *inputs, seconds=0.001).rows] == [1, 1]
    cw.pack(model, forms="tiles")
    assert cw.flops(model, *inputs).dense == 2 * 2 * 4 * 16 * 32
    assert cw.flops(model, *inputs, counting="every-operation").sparse
    assert cw.report(model, *inputs).total.flops == 2 * 2 * 4 * 16 * 32
    compared = cw.benchmark(model, against=dense, inputs=inputs, seconds=0.01)
    assert [row.shape for row in compared.results.rows if row.form == "sparse"] == [
        "the whole model",
        "first",
        "second",
    ]
    assert [fusion.module for fusion in cw.fuse(model, *inputs)] == ["activation"]


def test_a_mapping_that_is_itself_the_input_stays_one():
    class FromBatch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, batch, scale=1.0):
            return scale * self.layer(batch["pixels"])

    batch = {"pixels": torch.ones(3, 4)}
    assert cw.flops(FromBatch(), batch).dense == 2 * 3 * 4 * 2
    assert cw.flops(FromBatch(), batch, {"scale": 2.0}).dense == 2 * 3 * 4 * 2
    assert cw.flops(FromBatch(), {**batch, "scale": torch.ones(1)}, {}).dense == 2 * 3 * 4 * 2


def test_a_name_that_a_model_does_not_take_is_an_error_of_python():
    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        cw.flops(nn.Linear(4, 2), {"input": torch.ones(1, 4), "mask": 1})


def test_layers_that_are_called_by_name_are_seen():
    class ByName(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.activation = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()

        def forward(self, images):
            return self.activation(input=self.norm(input=self.conv(input=images)))

    torch.manual_seed(0)
    model, x = ByName().eval(), torch.rand(2, 8, 5, 5)
    cw.sparsify(model, "block:8", density=0.5)
    dense = copy.deepcopy(model)
    cw.bake(dense)
    assert cw.plan(model, x, seconds=0.001).rows[0].input == (2, 8, 5, 5)
    cw.pack(model, forms="tiles")
    for counting in ("products", "every-operation"):
        assert (
            cw.flops(model, x, counting=counting).layers[0].dense
            == cw.flops(dense, x, counting=counting).layers[0].dense
        )
    assert len(cw.benchmark(model, against=dense, inputs=x, seconds=0.01).results.rows) == 4
    assert [fusion.module for fusion in cw.fuse(model, x)] == ["norm", "activation"]
    torch.testing.assert_close(model(x), dense(x))
