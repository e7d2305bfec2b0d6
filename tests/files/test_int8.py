import pytest
import torch

import cutwork as cw
from cutwork.layers.swap import sparse_layers

from .runs import LOW, MODELS, Attends, Tied, bits, build, conv1d, encoder, packed, refuses, rewrite, to, without

pytestmark = pytest.mark.grid


@pytest.mark.parametrize("pattern", ["block:4", "block:3x5", "vector:4", "shuffled:4"])
@pytest.mark.parametrize("what", LOW)
def test_a_dense_model_becomes_the_saved_one_in_fewer_bits(path, what, pattern):
    model = packed(LOW[what], pattern=pattern)
    cw.save(model, path)
    other = build(seed=5).eval()
    checkpoint = cw.load(path, other)
    assert repr(other) == repr(model)
    assert bits(dict(other.state_dict())) == bits(dict(model.state_dict()))
    assert set(checkpoint.layers) == set(sparse_layers(model))
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))
    again = packed(LOW[what], pattern=pattern, seed=0)
    cw.load(path, again)
    assert bits(dict(again.state_dict())) == bits(dict(model.state_dict()))
    cw.save(other, path)
    assert str(cw.report(other)) == str(cw.report(model))
    assert cw.flops(other, x) == cw.flops(model, x)


@pytest.mark.parametrize("make", [encoder, conv1d, Tied, Attends, MODELS["bfloat16"]])
@pytest.mark.parametrize("form", ["tiles-int8", "tiles-bf16"])
def test_every_kind_of_model_comes_back_in_fewer_bits(path, form, make):
    model = packed({"*": form} if make is not Tied else {"first": form, "second": form}, make)
    cw.save(model, path)
    other = build(make, seed=5).eval()
    cw.load(path, other)
    assert repr(other) == repr(model)
    assert bits(dict(other.state_dict())) == bits(dict(model.state_dict()))
    x = torch.randn(3, 8).to(next(iter(build(make).parameters())).dtype)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


def test_a_model_in_int8_takes_any_mask(path):
    model = packed("tiles-int8", pattern="block:3x1")
    cw.save(model, path)
    others = [packed("tiles-int8", pattern="block:3x1", seed=seed) for seed in range(1, 6)]
    assert any(len(other[0].integers) != len(model[0].integers) for other in others)
    for other in others:
        layer = other[0]
        cw.load(path, other)
        assert other[0] is layer
        assert bits(dict(other.state_dict())) == bits(dict(model.state_dict()))
        with torch.no_grad():
            assert torch.equal(other(torch.ones(2, 8)), model(torch.ones(2, 8)))


def test_a_model_in_int8_of_another_storage_is_refused(path):
    cw.save(packed("tiles-int8"), path)
    refuses("0 has storage int8 .* but storage compressed .*; load into a dense model", path,
            packed("tiles"))  # fmt: skip
    cw.save(packed("tiles"), path)
    refuses("but storage int8 and .* in the model; load into a dense model", path, packed("tiles-int8"))
    cw.save(build(), path)
    refuses("0 is fixed block:2 at density 0.4, int8 in the model, but not sparse in the", path, packed("tiles-int8"))


INT8_CRAFTED = {
    "a convolution": (
        lambda d, t: d["layers"].update({"1": d["layers"].pop("0")}),
        "1 is fixed .* but no layer of this",
    ),
    "no integers": (
        without("model", "0.integers"),
        "0.integers is missing in the checkpoint, where 0 is fixed block:2 at density 0.4, int8",
    ),
    "a step less": (
        lambda d, t: t.update({"0.integers": t["0.integers"][1:]}),
        "0: its int8 weight is damaged: ptr needs",
    ),
    "a col": (lambda d, t: t.update({"0.col": t["0.col"] + 1000}), "0: its int8 weight is damaged: col holds"),
    "scales": (lambda d, t: t.update({"0.scales": t["0.scales"][1:]}), r"0.scales is torch.float32 \[7\] in the"),
    "a bias": (lambda d, t: t.update({"0.bias": t["0.bias"].double()}), "0.bias is torch.float64"),
    "an estimate": (
        to("layers", "0", "options", "estimate", value=True),
        "has an estimate where only masks that train",
    ),
    "ties": (to("layers", "0", "tied", value=["3"]), "layers/0 is in int8, which only a layer of its own"),
    "converts": (to("layers", "0", "converts", value=True), "layers/0 is int8, but converts, which only compressed"),
    "dense": (to("layers", "0", "storage", value="dense"), "layers/0/options has an estimate where .*, or lacks it"),
}


@pytest.mark.parametrize("what", INT8_CRAFTED)
def test_a_file_of_a_model_in_int8_with_wrong_content_is_refused(path, what):
    cw.save(packed("tiles-int8"), path)
    change, words = INT8_CRAFTED[what]
    rewrite(path, change)
    refuses(words, path, build(seed=1))
