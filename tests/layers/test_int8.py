import random

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.int8 import INT8_KEYS, Int8Linear

PATTERNS = ("block:4", "block:3x5", "vector:4", "shuffled:4")


def int8_model(pattern="block:4", seed=0, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(24, 22, **options), nn.ReLU(), nn.Linear(22, 10))
    cw.sparsify(model, pattern, density=0.4)
    cw.pack(model, forms="int8")
    return model


def copied(state):
    return {key: tensor.clone() for key, tensor in state.items()}


def is_same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


DAMAGES = {
    "a type": ("0.ptr", lambda ptr: ptr.float(), r"ptr must be contiguous torch.int32 of \[7\]; got torch.float32 of"),
    "nan": ("0.col", lambda col: col * float("nan"), "col must be contiguous torch.int32 of"),
    "a shape": ("0.scales", lambda scales: scales[1:], r"scales must be .* of \[22\]; got torch.float32 of \[21\]"),
    "a longer index": ("0.col", lambda col: torch.cat([col, col]), "col must be contiguous"),
    "a step less": ("0.integers", lambda integers: integers[1:], "integers must be contiguous torch.int8 of"),
    "strides": ("0.ptr", lambda ptr: torch.stack([ptr, ptr], 1)[:, 0], "ptr must be contiguous"),
    "meta": ("0.col", lambda col: col.to("meta"), "got torch.int32 of .* on the meta device"),
    "a number out of range": ("0.col", lambda col: col + 1000, "col holds"),
    "a falling ptr": ("0.ptr", lambda ptr: ptr.flip(0), "ptr must rise from 0"),
    "whole numbers for scales": ("0.scales", lambda scales: scales.int(), "scales must be contiguous torch.float32"),
    "a bias of another length": ("0.bias", lambda bias: bias[1:], "bias must be contiguous torch.float32"),
    "no tensor": ("0.ptr", lambda ptr: 3, "it holds something that is no tensor"),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_state_dict_changes_nothing(what, assign):
    model = int8_model()
    before = copied(model.state_dict())
    key, damage, words = DAMAGES[what]
    other = int8_model(seed=1).state_dict()
    with pytest.raises(ValueError, match=f"0: its int8 weight is damaged: .*{words}.*; load what state_dict"):
        model.load_state_dict({**other, key: damage(other[key])}, assign=assign)
    assert is_same(model.state_dict(), before)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("key", [*INT8_KEYS, "bias"])
def test_parts_of_two_weights_are_not_mixed(key, strict):
    layer, other = int8_model("shuffled:4")[0], int8_model("shuffled:4", seed=1)[0].state_dict()
    before = copied(layer.state_dict())
    del other[key]
    with pytest.raises(ValueError, match=f"the model itself: its int8 weight is damaged: it lacks {key}; load what"):
        layer.load_state_dict(other, strict=strict)
    assert is_same(layer.state_dict(), before)


def test_what_a_layer_has_no_place_for_is_refused():
    layer, other = int8_model(bias=False)[0], int8_model()[0]
    with pytest.raises(ValueError, match="it has no place for bias"):
        layer.load_state_dict(other.state_dict(), strict=False)


def test_a_state_dict_without_the_layer_leaves_it():
    model = int8_model()
    before = copied(model.state_dict())
    model.load_state_dict({}, strict=False)
    assert is_same(model.state_dict(), before)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_layer_loads_in_whole_or_not_at_all(pattern):
    dice, model = random.Random(0), int8_model(pattern)
    states = [copied(int8_model(pattern, seed=seed).state_dict()) for seed in (0, 1)]
    for _ in range(50):
        model.load_state_dict(states[0])
        mixed = {key: states[dice.randrange(2)][key] for key in states[0]}
        for key in dice.sample(sorted(mixed), dice.randrange(3)):
            del mixed[key]
        try:
            model.load_state_dict(mixed, strict=False)
        except ValueError:
            found = model[0].state_dict()
            assert any(
                is_same(found, {key.removeprefix("0."): t for key, t in state.items() if key.startswith("0.")})
                for state in (states[0], mixed)
            )
        model(torch.randn(3, 24))


def test_a_layer_in_several_places_is_in_int8_in_all():
    layer = nn.Linear(24, 24)
    model = nn.Sequential(layer, nn.Sequential(nn.ReLU(), layer))
    cw.sparsify(model, "block:4", density=0.4)
    cw.pack(model, forms="int8")
    assert isinstance(model[0], Int8Linear)
    assert model[1][1] is model[0]


def test_a_model_that_is_one_layer_cannot_be_exchanged():
    model = nn.Linear(24, 24)
    cw.sparsify(model, "block:4", density=0.4)
    with pytest.raises(
        ValueError, match=r"the model itself cannot take the form 'tiles-int8': .* such as nn.Sequential"
    ):
        cw.pack(model, forms="int8")


def test_an_outlier_that_nothing_reads_costs_no_precision():
    torch.manual_seed(0)
    layer = nn.Linear(24, 8)
    model = nn.Sequential(layer)
    mask = torch.zeros(8, 24, dtype=torch.bool)
    mask[:, 4:12] = True
    cw.sparsify(model, "block:4", masks={"0": mask})
    cw.pack(model, forms="int8")
    x = torch.randn(5, 24)
    expected = model(x)
    x[:, 20] = 1e4
    assert torch.equal(model(x), expected)
    x[:, 20] = torch.inf
    assert torch.equal(model(x), expected)


def test_half_precision_under_autocast_is_computed_and_comes_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 8))
    cw.sparsify(model, {"1": "block:4"}, density=0.5)
    cw.pack(model, forms="int8")
    x = torch.randn(5, 24)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.float16):
            found = model(x)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["ptr", "col", "integers"])
def test_what_is_changed_in_place_is_checked_before_a_kernel_reads_it(name):
    model = nn.Sequential(nn.Linear(24, 8))
    cw.sparsify(model, "block:4", density=0.5)
    cw.pack(model, forms="int8")
    x = torch.randn(5, 24)
    model(x)
    if name == "integers":
        model[0].integers = model[0].integers[:-1].clone()
    else:
        getattr(model[0], name).fill_(77)
    with pytest.raises(ValueError, match="its int8 weight is damaged"):
        model(x)
