"""What the zeros of a model are good for is found in files and models of every kind, and said honestly."""

import json

import pytest
import torch
from safetensors.torch import save_model
from torch import nn
from torch.nn.utils import prune

import cutwork as cw
from cutwork.kernels import REFERENCE
from cutwork.lab.checks import check as checking
from cutwork.patterns import parse
from cutwork.speed.plan import LayerPlan


def give_zeros(model, patterns):
    """Put zeros into layers of a model, by their names."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, pattern in ((name, parse(text)) for name, text in patterns.items()):
            weight = model.get_submodule(name).weight
            weight *= pattern.project(torch.rand(weight.shape), pattern.density or 0.25)
    return model


@pytest.fixture
def model():
    layers = [nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)]
    return give_zeros(nn.Sequential(*layers), {"0": "2:4", "1": "block:16", "2": "unstructured"})


FOUND = {"0": "2:4", "1": "block:16", "2": "unstructured"}


@pytest.mark.parametrize("kind", ["model", "state dict", "pth", "safetensors", "cutwork"])
def test_the_same_is_found_wherever_the_zeros_lie(model, kind, tmp_path):
    source = model
    if kind == "state dict":
        source = model.state_dict()
    elif kind != "model":
        source = tmp_path / f"model.{kind}"
        if kind == "pth":
            torch.save({"state_dict": model.state_dict()}, source)
        else:
            cw.freeze_zeros(model, FOUND)
            cw.save(model, source)
    if kind == "safetensors":
        cw.bake(model)
        save_model(model, source)
    found = cw.check(source)
    assert {each.name: each.zeros.pattern for each in found.weights} == FOUND
    assert found.without_zeros == (() if kind == "cutwork" else ("3",))
    assert [each.zeros.density for each in found.weights] == pytest.approx([0.5, 0.25, 0.25], abs=0.01)


def test_it_is_said_what_is_not_faster_and_why(model):
    text = str(cw.check(model))
    assert "2:4 along inputs in 1 of 4 weights, density 0.5: not faster on this CPU; there is no kernel here" in text
    assert "unstructured in 1 of 4 weights" in text
    assert "1 weight without zeros: 3" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_without_kernels_tiles_are_not_praised(model, monkeypatch):
    monkeypatch.setattr(checking, "kernel_name", lambda *_: REFERENCE)
    by_name = {each.name: each for each in cw.check(model).weights}
    assert by_name["1"].form == "dense"
    assert "no tile kernel for float32 here" in by_name["1"].reason
    monkeypatch.setattr(checking, "kernel_name", lambda *_: "cpu-tiles avx2")
    by_name = {each.name: each for each in cw.check(model).weights}
    assert by_name["1"].form == "" and "--time measures" in by_name["1"].reason


@pytest.mark.parametrize(
    ("times", "form", "reason"),
    [
        ((2.0, 3.0), "tiles", "faster as tiles: 2.00x for 1x64, 3.00x for 197x64"),
        ((0.5, 0.9), "dense", "not faster as tiles: 0.50x for 1x64, 0.90x for 197x64"),
        ((0.5, 3.0), "", "it depends on the input; as tiles 0.50x for 1x64, 3.00x for 197x64"),
    ],
)
def test_what_was_measured_decides(model, times, form, reason, monkeypatch):
    taken = iter(times)

    def plan(sparse, x, seconds):
        seconds = {"dense": next(taken), "tiles": 1.0}
        row = LayerPlan("0", (64, 64), "block:16", 0.25, tuple(x.shape), 1, seconds, "tiles", "")
        return cw.speed.plan.Plan((row,), training=False)

    monkeypatch.setattr(checking, "plan", plan)
    by_name = {each.name: each for each in cw.check(model.state_dict(), time=True, tokens=(1, 197)).weights}
    assert (by_name["1"].form, by_name["1"].reason) == (form, reason)
    # What has no tiles is not measured.
    assert not by_name["0"].gains and not by_name["2"].gains


def test_a_model_is_measured_with_its_inputs(model):
    found = cw.check(model, torch.randn(8, 64), time=True, seconds=0.01)
    by_name = {each.name: each for each in found.weights}
    assert [*by_name["1"].gains] == ["8x64"]
    assert by_name["1"].gains["8x64"] > 0
    assert "8x64" in str(found)
    assert type(model[1]) is nn.Linear


class Tied(nn.Module):
    """A language model in small: its head has the weight of its embedding, and two layers share one."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, 32)
        self.one, self.two, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.two.weight, self.head.weight = self.one.weight, self.embed.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 32))

    def forward(self, tokens):
        return self.head(self.normed(self.two(self.one(self.embed(tokens)))))


def test_shared_weights_count_once_and_what_cannot_be_looked_at_is_named():
    model = give_zeros(Tied(), {"one": "block:8", "head": "block:8"})
    found = cw.check(model, torch.arange(4), time=True, seconds=0.01)
    assert {each.name: bool(each.gains) for each in found.weights} == {"one": True, "head": False}
    assert "not looked at: normed: its weight is computed anew by a parametrization" in str(found)
    with pytest.raises(ValueError, match="whose zeros could be looked at; the model itself: its weight is computed"):
        cw.check(model.normed)


def test_masks_beside_the_weights_count(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    for source in (model, model.state_dict()):
        found = cw.check(source)
        assert found.told_by == "torch.nn.utils.prune"
        assert found.weights[0].zeros.density == 0.5
    assert prune.is_pruned(model)


def test_json_says_the_same_in_numbers(model):
    found = json.loads(cw.check(model).to_json())
    assert [each["zeros"]["pattern"] for each in found["weights"]] == [*FOUND.values()]
    assert found["without_zeros"] == ["3"]


def test_what_is_not_pruned_is_no_error():
    found = cw.check(nn.Sequential(nn.Linear(4, 4), nn.Conv2d(2, 2, 3)))
    assert str(found).endswith("No weight has zeros: nothing here is pruned.")


def test_rules_that_few_groups_break_and_dead_outputs_are_said():
    weight = give_zeros(nn.Sequential(nn.Linear(64, 64)), {"0": "2:4"})[0].weight.detach()
    weight[0, :4] = 1
    weight[5] = 0
    long = {f"{'encoder.' * 5}{at}.weight": torch.ones(4, 4) for at in range(3)}
    text = str(cw.check({"fc.weight": weight, **long}))
    assert all(len(line) <= 120 for line in text.splitlines())
    assert "fc is 2:4 but for 1 of 1,024 groups, so not 2:4" in text
    assert "1 output zero as a whole, in 1 weight" in text
    assert "all of it is zero" in str(cw.check({"fc.weight": torch.zeros(4, 4)}))


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ({"fc.bias": torch.ones(3)}, {}, "holds no matrix of floating point numbers among its 1 tensors"),
        ({"epoch": 3}, {}, "no state dict"),
        (nn.ReLU(), {}, "has no linear layer or 2-d convolution"),
    ],
)
def test_what_cannot_be_checked_is_refused(source, given, message):
    with pytest.raises(ValueError, match=message):
        cw.check(source, **given)


def test_a_checkpoint_alone_is_not_timed(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64))
    cw.sparsify(model, "block:16", density=0.25)
    cw.save(model, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="not what computes; to time it, give the folder of its run"):
        cw.check(tmp_path / "model.safetensors", time=True)
    with pytest.raises(ValueError, match="inputs are those of a model"):
        cw.check(tmp_path / "model.safetensors", torch.ones(1))
