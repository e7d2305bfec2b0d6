import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.compressed import CompressedLinear
from cutwork.layers.int8 import Int8Linear
from cutwork.speed.layer_timing import FormTimer
from cutwork.speed.timing import Timing

from .models import sparse_model


def test_each_layer_takes_the_form_that_is_faster_and_the_plan_says_why(speed):
    model, x = sparse_model(), torch.randn(5, 32)
    plan = cw.plan(model, x)
    assert [row.form for row in plan.rows] == ["tiles", "tiles", "dense"]
    assert plan.rows[0].reason == "2.0x faster than dense for 5x32"
    assert plan.rows[0].gain == 2
    assert "unstructured has no tiles" in plan.rows[2].reason
    assert not any(isinstance(layer, CompressedLinear) for layer in model)
    speed["tiles"] = 6e-3
    cw.plan(model, x, cache=False)
    slower = cw.plan(model, x, cache=False).rows[0]
    assert (slower.form, slower.reason) == ("dense", "tiles 3.0x slower here for 5x32")
    speed["tiles"] = 1.99e-3
    assert cw.plan(model, x, cache=False).rows[0].reason == "tiles only 1.01x faster for 5x32, which may be chance"


def test_forms_are_forced_and_forbidden_by_name(speed):
    model, x = sparse_model(), torch.randn(5, 32)
    plan = cw.plan(model, x, forms={"*": "!tiles", "2": "tiles"})
    assert [(row.form, row.reason) for row in plan.rows[:2]] == [("dense", "tiles is forbidden"), ("tiles", "as asked")]
    assert speed["calls"] == 0
    with pytest.raises(
        ValueError, match="unknown form 'fast'; write one of 'dense', 'tiles', 'tiles-bf16', 'tiles-int8'"
    ):
        cw.plan(model, x, forms="fast")
    with pytest.raises(ValueError, match="no sparse layer matches 'head'; they are '0', '2', '4'"):
        cw.plan(model, x, forms={"head": "dense"})
    with pytest.raises(ValueError, match="4 cannot take the form 'tiles': unstructured has no tiles"):
        cw.plan(model, x, forms={"4": "tiles"})


def test_without_inputs_a_layer_leaves_dense_only_where_that_is_faster_for_all_usual_sizes(speed, monkeypatch):
    model = sparse_model()
    assert cw.plan(model).rows[0].form == "tiles"
    assert cw.plan(model).rows[0].calls == 4

    def slow_for_one_token(timer, layer, usage, forms):
        return {"dense": Timing(1.0, 0.0, 5), "tiles": Timing(2.0 if usage.shape[0] == 1 else 0.1, 0.0, 5)}

    monkeypatch.setattr(FormTimer, "time", slow_for_one_token)
    row = cw.plan(model).rows[0]
    assert (row.form, row.reason) == ("dense", "tiles 2.0x slower here for 1x32")


def test_a_layer_that_is_not_called_stays_dense(speed):
    model = nn.Sequential(nn.Linear(32, 32))
    model.spare = nn.Linear(32, 32)
    cw.sparsify(model, "block:8", density=0.25)
    model.forward = model[0].__call__
    row = cw.plan(model, torch.randn(3, 32)).rows[1]
    assert (row.form, row.reason) == (
        "dense",
        "not called, so nothing was measured; pass inputs of the model that reach it",
    )


def test_layers_that_share_a_weight_take_one_form(speed):
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].weight = model[0].weight
    cw.sparsify(model, "block:8", density=0.25)
    plan = cw.pack(model, torch.randn(3, 32))
    assert len(plan.rows) == 1
    assert model[0].values is model[1].values


def test_a_dense_model_has_nothing_to_plan():
    with pytest.raises(ValueError, match="no sparse layer; sparsify"):
        cw.plan(nn.Sequential(nn.Linear(4, 4)))


def test_fewer_bits_are_taken_only_on_request(speed):
    model, x = sparse_model(), torch.randn(5, 32)
    assert [row.form for row in cw.plan(model, x).rows] == ["tiles", "tiles", "dense"]
    assert [row.form for row in cw.plan(model, x, precisions=["bf16"]).rows] == ["tiles-bf16", "tiles-bf16", "dense"]
    y = model(x)
    plan = cw.pack(model, x, precisions=["bf16", "int8"])
    assert [row.form for row in plan.rows] == ["tiles-int8", "tiles-int8", "dense"]
    assert plan.rows[0].reason == "6.7x faster than dense for 5x32"
    assert isinstance(model[0], Int8Linear)
    with torch.no_grad():
        error = (model(x) - y).norm() / y.norm()
    assert 0 < error < 0.05
    assert "kernel=" in repr(model[0])


def test_convolutions_have_no_form_of_fewer_bits(speed):
    model = nn.Sequential(nn.Conv2d(8, 8, 3))
    cw.sparsify(model, "block:4", density=0.5)
    x = torch.randn(1, 8, 6, 6)
    assert cw.plan(model, x, precisions=["int8"]).rows[0].form == "tiles"
    with pytest.raises(ValueError, match="0 cannot take the form 'tiles-int8': convolutions have kernels for float32"):
        cw.plan(model, x, forms={"0": "tiles-int8"})


def test_names_people_write_are_taken_or_named(speed):
    model, x = sparse_model(), torch.randn(5, 32)
    forms = {"*": "dense", "0": "int8", "2": "bf16"}
    assert [row.form for row in cw.plan(model, x, forms=forms).rows] == ["tiles-int8", "tiles-bf16", "dense"]
    plan = cw.plan(model, x, forms={"*": "!int8"}, precisions="int8")
    assert [row.form for row in plan.rows] == ["tiles", "tiles", "dense"]
    assert [row.form for row in cw.plan(model, x, precisions="bf16").rows[:1]] == ["tiles-bf16"]
    with pytest.raises(ValueError, match=r"unknown form 'tile' \(did you mean 'tiles'\?\); write one of"):
        cw.plan(model, x, forms="tile")
    with pytest.raises(ValueError, match=r"unknown precision 'int-8' \(did you mean 'int8'\?\)"):
        cw.pack(model, x, precisions="int-8")
    for forms in (["tiles"], 5):
        with pytest.raises(TypeError, match=r"forms=.*; name one form, or write a mapping"):
            cw.pack(model, x, forms=forms)
    with pytest.raises(ValueError, match="unknown form 5"):
        cw.plan(model, x, forms={"*": 5})
    for function in (cw.plan, cw.pack):
        with pytest.raises(TypeError, match=r"the model must be an nn.Module; got 5 \(int\)"):
            function(5, x)
        with pytest.raises(ValueError, match="seconds=-1; give some time"):
            function(model, x, seconds=-1)
