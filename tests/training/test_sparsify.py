import copy
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import cutwork as cw


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 30), nn.Embedding(4, 4))


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}, [type(m) for m in model.modules()]


BAD = {
    "unknown pattern": (
        lambda m: cw.sparsify(m, "blok:4", density=0.1),
        r"unknown pattern 'blok:4' \(did you mean 'block:4'\?\); write",
    ),
    "glob": (lambda m: cw.sparsify(m, {"layer*": "block:4"}, density=0.1), "no layer matches 'layer\\*'; the layers"),
    "glob of others": (lambda m: cw.sparsify(m, {"3": "block:4"}, density=0.1), "'3' matches only Embedding"),
    "density 0": (lambda m: cw.sparsify(m, "block:4", density=0), r"density=0 is outside \(0, 1\]"),
    "density 2": (lambda m: cw.sparsify(m, "block:4", density=2.0), r"density=2.0 is outside \(0, 1\]"),
    "sparsity 1": (lambda m: cw.sparsify(m, "block:4", sparsity=1.0), r"sparsity=1.0 is outside \[0, 1\)"),
    "both": (lambda m: cw.sparsify(m, "block:4", density=0.1, sparsity=0.9), "say the same thing twice"),
    "neither": (lambda m: cw.sparsify(m, "block:4"), "block:4 needs density=... or sparsity=..."),
    "cannot tile": (lambda m: cw.sparsify(m, "2:4-tile"), "^2: 2:4-tile cannot tile 30 outputs"),
    "fixed density": (lambda m: cw.sparsify(m, {"0": "2:4"}, density=0.1), "2:4 fixes the density at 0.5; got"),
    "all dense": (lambda m: cw.sparsify(m, "dense", density=0.1), "leaves every layer dense"),
    "method": (
        lambda m: cw.sparsify(m, "block:4", density=0.1, method="rigel"),
        r"unknown method 'rigel' \(did you mean 'rigl'\?\); write",
    ),
    "allocation": (lambda m: cw.sparsify(m, "block:4", density=0.1, allocation="erl"), "unknown allocation 'erl'"),
    "score": (lambda m: cw.sparsify(m, "block:4", density=0.1, init="size"), "unknown score 'size'"),
    "score without gradient": (lambda m: cw.sparsify(m, "block:4", density=0.1, init="taylor"), "needs a gradient"),
    "no steps": (lambda m: cw.sparsify(m, "block:4", density=0.1, method="rigl"), "pass steps=... to sparsify"),
    "density glob": (
        lambda m: cw.sparsify(m, "block:4", density={"0": 0.1, "x": 0.2}),
        "density: no chosen layer matches 'x'",
    ),
    "density missing": (lambda m: cw.sparsify(m, "block:4", density={"0": 0.1}), "gives one to 2"),
    "masks and density": (lambda m: cw.sparsify(m, "block:4", density=0.1, masks={}), "masks bring their own density"),
    "masks and init": (lambda m: cw.sparsify(m, "block:4", init="random", masks={}), "leave density, sparsity, alloc"),
    "masks and allocation": (lambda m: cw.sparsify(m, "block:4", allocation="erk", masks={}), "need no scores"),
    "masks of others": (lambda m: cw.sparsify(m, "block:4", masks={"0": torch.ones(64, 32) > 0}), "differ in 2"),
    "mask shape": (
        lambda m: cw.sparsify(m, {"0": "block:4"}, masks={"0": torch.ones(4, 4) > 0}),
        "a mask is a bool tensor shaped like the weight",
    ),
    "mask illegal": (
        lambda m: cw.sparsify(m, {"0": "block:4"}, masks={"0": torch.eye(64, 32) > 0}),
        "the mask is not legal for block:4",
    ),
    "mask of nothing": (
        lambda m: cw.sparsify(m, {"0": "block:4"}, masks={"0": torch.zeros(64, 32) > 0}),
        "^0: the mask keeps none of its weight",
    ),
    "masks of a supermask": (
        lambda m: cw.sparsify(m, {"0": "block:4"}, masks={"0": torch.ones(64, 32) > 0}, method="supermask"),
        "its masks come from scores",
    ),
    "masks of a later supermask": (
        lambda m: cw.sparsify(m, "block:4", masks={}, method=cw.Switch(cw.Supermask(), sparse_from=2)),
        "its masks come from scores",
    ),
    "init of a supermask": (
        lambda m: cw.sparsify(m, "block:4", density=0.1, init="magnitude", method="supermask"),
        r"Supermask\(init=...\) says how its scores start",
    ),
    "too coarse": (
        lambda m: cw.sparsify(m, {"0": "block:64x32"}, density=0.1),
        r"^0: block:64x32 cuts its 64x32 weight into 1 unit, too coarse to keep 0.1 of it; use smaller tiles, "
        r"a larger density, or {'0': 'dense'}",
    ),
    "fixed densities": (
        lambda m: cw.sparsify(m, {"0": "2:4"}, density={"0": 0.5}),
        r"2:4 fixes the density at 0.5; got density={'0': 0.5}, leave it out",
    ),
    "densities and allocation": (
        lambda m: cw.sparsify(m, "block:4", density={"*": 0.5}, allocation="erk"),
        "the allocation would go unread",
    ),
    "allocation misses one": (
        lambda m: cw.sparsify(m, "block:4", density=0.5, allocation=lambda shapes, density: {"0": density}),
        "^2: the allocation gives it no density, only 0",
    ),
    "allocation too large": (
        lambda m: cw.sparsify(m, "block:4", density=0.5, allocation=lambda shapes, density: {"0": 0.5, "2": 1.5}),
        r"^2: the allocation gives it density 1.5, which is outside \(0, 1\]",
    ),
    "score of nan": (
        lambda m: cw.sparsify(m, "block:4", density=0.5, init=lambda weight, grad, generator: weight * torch.nan),
        "^0: scores hold nan",
    ),
    "sparsity glob": (lambda m: cw.sparsify(m, "block:4", sparsity={"*": 1.0}), r"sparsity=1.0 is outside \[0, 1\)"),
    "no zeros": (cw.freeze_zeros, "none of 2 layers has a unit of zeros"),
    "unknown storage": (
        lambda m: cw.sparsify(m, "block:4", density=0.5, storage="packed"),
        "unknown storage 'packed'; write 'dense', 'compressed'",
    ),
    "compressed without tiles": (
        lambda m: cw.sparsify(m, {"0": "block:4", "2": "unstructured"}, density=0.5, storage="compressed"),
        "^2: unstructured has no tiles to store; use block, vector or shuffled, or keep it in dense storage, or leave",
    ),
    "compressed 2:4": (
        lambda m: cw.sparsify(m, {"0": "2:4"}, storage="compressed"),
        "^0: 2:4 has no tiles to store",
    ),
    "compressed supermask": (
        lambda m: cw.sparsify(m, "block:4", density=0.5, method="supermask", storage="compressed"),
        "^0: Supermask trains the whole weight behind the mask, .* use storage='dense', or a method with fixed masks",
    ),
    "compressed STE": (
        lambda m: cw.sparsify(m, "block:4", density=0.5, method="srste", storage="compressed"),
        "^0: STE trains the whole weight behind the mask",
    ),
    "negative steps": (
        lambda m: cw.sparsify(m, "block:4", density=0.5, steps=-1),
        "steps=-1 is less than 1; give the number",
    ),
    "bake dense": (cw.bake, "the model has no sparse layer"),
}


WRONG_TYPES = {
    "pattern None": (lambda m: cw.sparsify(m, None, density=0.1), "a pattern is a text or a Pattern; got None"),
    "pattern list": (lambda m: cw.sparsify(m, ["2:4"]), r"a pattern is .*; got \['2:4'\] \(list\); write"),
    "pattern int": (lambda m: cw.sparsify(m, {"0": 4}, density=0.1), r"a pattern is .*; got 4 \(int\); write"),
    "glob int": (lambda m: cw.sparsify(m, {0: "2:4"}), r"is a str; got 0 \(int\); write '0'"),
    "density str": (
        lambda m: cw.sparsify(m, "block:4", density="0.1"),
        r"density is a number, or a mapping from globs to numbers; got '0.1' \(str\); write density=0.1",
    ),
    "density tuple": (lambda m: cw.sparsify(m, "block:4", density=(0.1,)), r"got \(0.1,\) \(tuple\)"),
    "densities str": (lambda m: cw.sparsify(m, "block:4", density={"*": "0.1"}), r"got '0.1' \(str\)"),
    "sparsity str": (lambda m: cw.sparsify(m, "block:4", sparsity="0.9"), "sparsity is a number"),
    "fixed density str": (lambda m: cw.sparsify(m, {"0": "2:4"}, density="0.5"), "density is a number"),
    "model": (
        lambda m: cw.sparsify(m.state_dict(), "2:4"),
        r"must be an nn.Module; got OrderedDict; write sparsify\(model",
    ),
    "seed": (lambda m: cw.sparsify(m, "block:4", density=0.5, seed="a"), r"seed is a whole number; got 'a' \(str\)"),
    "steps": (
        lambda m: cw.sparsify(m, "block:4", density=0.5, steps=0.5),
        r"steps is a whole number; got 0.5 \(float\)",
    ),
    "allocation": (
        lambda m: cw.sparsify(m, "block:4", density=0.5, allocation=lambda shapes, density: density),
        "an allocation returns a mapping",
    ),
}


@pytest.mark.parametrize("case", [*BAD, *(f"type of {case}" for case in WRONG_TYPES)])
def test_bad_input_is_explained_and_changes_nothing(case):
    kind = TypeError if case.startswith("type of ") else ValueError
    call, message = WRONG_TYPES[case.removeprefix("type of ")] if kind is TypeError else BAD[case]
    model = mlp()
    values, types = snapshot(model)
    with pytest.raises(kind, match=message):
        call(model)
    after, types_after = snapshot(model)
    assert types == types_after
    assert all(torch.equal(values[name], after[name]) for name in values)
    assert set(values) == set(after)


def test_under_inference_mode_nothing_is_made_that_could_never_train():
    model = mlp()
    with torch.inference_mode(), pytest.raises(ValueError, match=r"under torch.inference_mode\(\) would make masks"):
        cw.sparsify(model, "block:4", density=0.1)
    assert type(model[0]) is nn.Linear
    with torch.no_grad():
        cw.sparsify(model, "block:4", density=0.1)
    assert model[0].weight.requires_grad


NUMPY = {
    "density": {"density": np.float32(0.25)},
    "sparsity": {"sparsity": np.float32(0.75)},
    "by glob": {"density": {"*": np.float16(0.25)}},
    "allocation": {"density": 0.25, "allocation": lambda shapes, density: dict.fromkeys(shapes, np.float32(density))},
    "steps and seed": {"density": 0.25, "steps": np.int64(1000), "seed": np.uint8(3), "method": "rigl"},
    "decay": {"density": 0.25, "method": cw.STE(decay=np.float32(0.1))},
}


@pytest.mark.parametrize("case", NUMPY)
def test_numbers_of_numpy_count_and_can_be_saved(case, tmp_path):
    model = mlp()
    sparsifier = cw.sparsify(model, "block:4", **NUMPY[case])
    assert all(type(layer.sparsity.density) is float for layer in sparsifier.layers.values())
    assert float(model[0].sparsity.mask.float().mean()) == 0.25
    cw.save(model, tmp_path / "model.safetensors", sparsifier=sparsifier)
    cw.load(tmp_path / "model.safetensors", mlp())


def test_nan_weights_are_refused_before_anything_changes():
    model = mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="nan"):
        cw.sparsify(model, "block:4", density=0.1)
    assert type(model[0]) is nn.Linear


def test_the_last_glob_that_matches_decides_and_dense_layers_stay_dense():
    model = mlp()
    cw.sparsify(model, {"*": "block:4", "2": "dense"}, density=0.25)
    assert [type(layer).__name__ for layer in model] == ["SparseLinear", "ReLU", "Linear", "Embedding"]
    model = mlp()
    cw.sparsify(model, {"*": "block:4", "2": "vector:4"}, density=0.25)
    assert str(model[2].sparsity.pattern) == "vector:4"


def test_density_and_sparsity_by_glob():
    model = mlp()
    cw.sparsify(model, "unstructured", sparsity={"*": 0.9, "2": 0.5})
    assert float(model[0].sparsity.mask.float().mean()) == pytest.approx(0.1, abs=1e-3)
    assert float(model[2].sparsity.mask.float().mean()) == pytest.approx(0.5, abs=1e-3)


def test_patterns_that_fix_their_density_stand_beside_others():
    model = mlp()
    cw.sparsify(model, {"0": "2:4", "2": "block:2"}, density=0.1)
    assert float(model[0].sparsity.mask.float().mean()) == 0.5
    assert float(model[2].sparsity.mask.float().mean()) == pytest.approx(0.1, abs=1e-2)


def test_an_allocation_may_be_a_function():
    model = mlp()
    cw.sparsify(model, "unstructured", density=0.5, allocation=lambda shapes, density: dict.fromkeys(shapes, 1.0))
    assert model[0].sparsity.mask.all()


def test_the_layer_keeps_its_identity_its_hooks_and_its_flags():
    model = mlp().eval()
    layer, weight, calls = model[0], model[0].weight, []
    layer.register_forward_hook(lambda *args: calls.append(1))
    cw.sparsify(model, "block:4", density=0.25)
    assert model[0] is layer
    assert layer.weight is weight
    assert not layer.training
    model[0](torch.randn(2, 32))
    assert calls == [1]
    assert isinstance(layer, nn.Linear)


def test_the_model_itself_may_be_a_layer():
    model = nn.Linear(8, 8)
    sparsifier = cw.sparsify(model, "block:4", density=0.5)
    assert list(sparsifier.layers) == [""]
    assert cw.bake(model)[""].sum() == 32


def test_a_layer_in_two_places_is_one_layer():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    sparsifier = cw.sparsify(model, "block:4", density=0.5)
    assert list(sparsifier.layers) == ["0"]
    assert model[2] is model[0]


def test_tied_weights_share_one_mask():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    model[1].weight = model[0].weight
    sparsifier = cw.sparsify(model, "block:4", density=0.5)
    assert model[0].sparsity is model[1].sparsity
    assert list(sparsifier.layers) == ["0", "2"]
    optimizer = torch.optim.AdamW(model.parameters())
    sparsifier.attach(optimizer)
    model(torch.randn(2, 8)).sum().backward()
    optimizer.step()
    assert not model[1].weight[~model[1].sparsity.mask].any()
    cw.bake(model)
    assert model[0].weight is model[1].weight


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            {"0": "block:4"},
            r"^0: it shares its weight with 1 \(Linear\), which would stay dense; make both sparse, or {'0': 'dense'}",
        ),
        ({"0": "block:4", "1": "vector:4"}, "share one weight; give both the same pattern"),
    ],
)
def test_tied_weights_must_be_treated_alike(patterns, message):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=message):
        cw.sparsify(model, patterns, density=0.5)


def test_a_weight_tied_to_an_embedding_is_refused():
    model = nn.ModuleDict({"embed": nn.Embedding(8, 8), "head": nn.Linear(8, 8)})
    model["head"].weight = model["embed"].weight
    with pytest.raises(ValueError, match=r"^head: it shares its weight with embed \(Embedding\), .* own, or {'head'"):
        cw.sparsify(model, "block:4", density=0.5)


def test_a_weight_shared_with_a_layer_that_transposes_it_is_refused():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    model = nn.Sequential(nn.Linear(8, 8), pytorch_utils.Conv1D(8, 8))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match=r"^0: it shares its weight with 1 \(Conv1D\), which transposes it; part them"):
        cw.sparsify(model, "block:4", density=0.5)


def with_weight(weight):
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def made_for_inference():
    with torch.inference_mode():
        return nn.Linear(8, 8)


def without_parameter():
    layer = nn.Linear(8, 8)
    weight = layer.weight.detach()
    del layer.weight
    layer.weight = weight
    return layer


UNFIT = {
    "weight_norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
        r"its weight is computed anew by a parametrization \(WeightNorm\); call "
        r"torch.nn.utils.parametrize.remove_parametrizations\(layer, 'weight'\) first",
    ),
    "spectral_norm": (
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
        r"its weight is computed anew by a parametrization \(SpectralNorm\); call "
        r"torch.nn.utils.parametrize.remove_parametrizations\(layer, 'weight'\) first",
    ),
    "old spectral_norm": (
        lambda: nn.utils.spectral_norm(nn.Linear(8, 8)),
        r"its weight is computed anew by SpectralNorm; call "
        r"torch.nn.utils.remove_spectral_norm\(layer, 'weight'\) first",
    ),
    "old weight_norm": (
        lambda: nn.utils.weight_norm(nn.Linear(8, 8)),
        r"its weight is computed anew by WeightNorm; call torch.nn.utils.remove_weight_norm\(layer, 'weight'\) first",
    ),
    "prune": (
        lambda: prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5),
        r"its weight is computed anew by L1Unstructured; call torch.nn.utils.prune.remove\(layer, 'weight'\) first",
    ),
    "no parameter": (without_parameter, "its weight is computed anew or missing: Linear has no parameter 'weight'"),
    "lazy": (lambda: nn.LazyLinear(8), "its weight has no shape yet"),
    "empty": (lambda: with_weight(torch.empty(4, 0)), r"its weight is empty, \(4, 0\)"),
    "inference": (made_for_inference, "its weight was made under torch.inference_mode"),
    "complex": (lambda: nn.Linear(8, 8, dtype=torch.complex64), "its weight holds torch.complex64"),
    "integer": (lambda: with_weight(torch.ones(8, 8, dtype=torch.int8)), "its weight holds torch.int8"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
@pytest.mark.parametrize("case", UNFIT)
def test_a_weight_that_can_have_no_mask_is_refused_by_name(case):
    build, message = UNFIT[case]
    model = nn.Sequential(build(), nn.Linear(8, 8))
    kinds = [type(layer) for layer in model]
    with pytest.raises(ValueError, match=rf"^0: {message}.*, or {{'0': 'dense'}}"):
        cw.sparsify(model, "block:4", density=0.5)
    assert [type(layer) for layer in model] == kinds
    assert list(cw.sparsify(model, {"*": "block:4", "0": "dense"}, density=0.5).layers) == ["1"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_the_old_weight_norm_is_refused_also_where_the_model_is_the_layer():
    with pytest.raises(ValueError, match=r"^the model itself: its weight is computed anew by WeightNorm"):
        cw.sparsify(nn.utils.weight_norm(nn.Linear(8, 8)), "block:4", density=0.5)


def test_a_pruned_projection_of_an_attention_is_refused_by_name():
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
    prune.l1_unstructured(model["attention"], "in_proj_weight", 0.5)
    undo = r"prune.remove\(layer, 'in_proj_weight'\) first"
    with pytest.raises(ValueError, match=rf"^attention.q_proj and 2 others: its weight is computed anew .*{undo}"):
        cw.sparsify(model, "block:4", density=0.5)
    kind = type(model["attention"])
    with pytest.raises(ValueError, match=rf"^attention.out_proj: q_proj beside it: its weight is .*{undo}"):
        cw.sparsify(model, {"attention.out_proj": "block:4"}, density=0.5)
    assert type(model["attention"]) is kind


class Loud(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def awkward():
    """Return a model with three layers that can be sparse and four that cannot."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(32, 64),
            "first": nn.Linear(64, 64),
            "norm": nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)),
            "loud": Loud(64, 64),
            "other": nn.Linear(64, 64),
            "second": nn.Linear(64, 128),
            "narrow": nn.Linear(64, 4),
            "third": nn.Linear(128, 64),
            "head": nn.Linear(64, 32),
        }
    )
    model["other"].weight = model["loud"].weight
    model["head"].weight = model["embed"].weight
    return model


def test_what_cannot_be_sparse_is_skipped_on_request_and_named_once(caplog):
    model = awkward()
    with pytest.raises(ValueError, match=r"^norm: its weight is computed anew"):
        cw.sparsify(model, "block:16", density=0.1)
    kinds = [type(layer) for layer in model.values()]
    sparsifier = cw.sparsify(model, {"*": "block:16"}, density=0.1, skip=True)
    assert list(sparsifier.layers) == ["first", "second", "third"]
    assert sparsifier.skipped.keys() == {"norm", "loud", "other", "head", "narrow"}
    assert "shares its weight with loud (Loud), which would stay dense" in sparsifier.skipped["other"]
    assert "shares its weight with embed (Embedding)" in sparsifier.skipped["head"]
    assert "too coarse to keep 0.1 of it" in sparsifier.skipped["narrow"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message.startswith("sparsify leaves 5 layers dense: norm: its weight is computed anew by")
    assert all(name in record.message for name in sparsifier.skipped)
    cw.bake(model)
    assert [type(layer) for layer in model.values()] == kinds


def test_what_is_left_shares_out_the_density_of_what_is_left():
    model = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 128), "narrow": nn.Linear(16, 16)})
    skipping = cw.sparsify(model, "block:16", density=0.25, allocation=narrowest_last, skip=True)
    assert list(skipping.skipped) == ["narrow"]
    assert [layer.sparsity.density for layer in skipping.layers.values()] == [0.25, 0.25]


def narrowest_last(shapes, density):
    """Keep less of all where a layer called "narrow" is among them, and hardly anything of that."""
    return dict.fromkeys(shapes, density) if "narrow" not in shapes else {**dict.fromkeys(shapes, 0.1), "narrow": 0.01}


def test_a_skipped_layer_may_have_been_given_a_density_or_have_no_mask():
    sparsifier = cw.sparsify(awkward(), "block:16", density={"*": 0.25, "head": 0.5}, skip=True)
    assert sparsifier.layers["first"].sparsity.density == 0.25
    masks = cw.bake(nn.ModuleDict(sparsifier.layers))
    again = cw.sparsify(awkward(), "block:16", masks=masks, skip=True)
    assert list(again.layers) == list(masks)


def test_skipping_everything_or_something_that_was_no_layer_is_an_error():
    model = nn.Sequential(Loud(8, 8), Loud(8, 8))
    with pytest.raises(ValueError, match=r"^0 and 1 other: .*Loud is .*, and no other layer is left to be sparse$"):
        cw.sparsify(model, "block:4", density=0.5, skip=True)
    with pytest.raises(ValueError, match="no layer matches 'hed'"):
        cw.sparsify(awkward(), {"*": "block:16", "hed": "dense"}, density=0.1, skip=True)
    with pytest.raises(TypeError, match=r"^skip is True or False; got \['head'\]; .* by name with {'head': 'dense'}"):
        cw.sparsify(awkward(), "block:16", density=0.1, skip=["head"])


def test_layers_refused_for_the_same_reason_are_counted():
    with pytest.raises(ValueError, match=r"^0 and 52 others: .*Loud is a subclass .*, or {'0': 'dense', ...}"):
        cw.sparsify(nn.Sequential(*(Loud(8, 8) for _ in range(53))), "block:4", density=0.5)


@pytest.mark.parametrize("model", [nn.Sequential(), nn.Sequential(nn.Embedding(4, 4), nn.ReLU())])
def test_a_model_without_layers_that_could_be_sparse_is_refused(model):
    with pytest.raises(ValueError, match="this model has no linear layer or 2-d convolution that could be sparse"):
        cw.sparsify(model, "block:4", density=0.5)


def test_coarse_tiles_may_hold_a_frozen_zero_or_a_given_mask():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(128, 16))
    mask = torch.zeros(16, 128, dtype=torch.bool)
    mask[:, :16] = True
    cw.sparsify(model, {"1": "block:16"}, masks={"1": mask})
    masks = cw.bake(model)
    assert list(cw.freeze_zeros(model, "block:16").layers) == ["1"]
    assert torch.equal(model[1].sparsity.mask, masks["1"])


def test_masks_of_a_pattern_that_fixes_its_density_are_taken_up_again():
    model = nn.Sequential(nn.Linear(8, 8))
    cw.sparsify(model, "2:4")
    masks = cw.bake(model)
    cw.sparsify(model, "2:4", masks=masks)
    assert torch.equal(model[0].sparsity.mask, masks["0"])


def test_an_average_takes_over_masks_that_moved():
    model = mlp()[:3]
    sparsifier = cw.sparsify(model, "block:4", density=0.25, method=cw.RigL(every=1, until=9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(6):
        model(torch.randn(4, 32)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)
    twins = {name: average.module.get_submodule(name) for name in sparsifier.layers}
    assert any(twin.weight[~twin.sparsity.mask].any() for twin in twins.values())
    cw.copy_masks(model, average.module)
    for name, twin in twins.items():
        assert torch.equal(twin.sparsity.mask, sparsifier.layers[name].sparsity.mask)
        assert twin.sparsity.pattern.allows(twin.sparsity.mask)
        assert not twin.weight[~twin.sparsity.mask].any()
    with pytest.raises(ValueError, match=r"they differ in 0, 2, module.0, module.2; pass the module inside"):
        cw.copy_masks(model, average)


def test_masks_are_copied_only_between_models_that_are_sparse_alike():
    source, target = mlp(), mlp()
    with pytest.raises(ValueError, match="the source has no sparse layer"):
        cw.copy_masks(source, target)
    cw.sparsify(source, {"0": "block:4"}, density=0.25)
    cw.sparsify(target, {"0": "block:2"}, density=0.25)
    mask = target[0].sparsity.mask.clone()
    with pytest.raises(ValueError, match=r"^0: its mask is Fixed\(block:4\) .* and Fixed\(block:2\)"):
        cw.copy_masks(source, target)
    assert torch.equal(target[0].sparsity.mask, mask)


def test_a_subclass_is_refused_by_name():
    with pytest.raises(ValueError, match=r"0: .*Loud is a subclass that may compute something else"):
        cw.sparsify(nn.Sequential(Loud(8, 8)), "block:4", density=0.5)


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="meta device"):
        cw.sparsify(nn.Sequential(nn.Linear(8, 8, device="meta")), "block:4", density=0.5)
    with pytest.raises(ValueError, match="no linear layer or 2-d convolution"):
        cw.sparsify(nn.Sequential(nn.ReLU()), {"x": "block:4"}, density=0.5)


def test_sparse_layers_cannot_be_chosen_again_but_others_can():
    model = mlp()
    first = cw.sparsify(model, {"0": "block:4"}, density=0.25)
    with pytest.raises(ValueError, match="sparse already; bake"):
        cw.sparsify(model, {"0": "block:4"}, density=0.25)
    second = cw.sparsify(model, {"*": "2:4"}, method="srste")
    optimizer = torch.optim.AdamW(model.parameters())
    first.attach(optimizer)
    second.attach(optimizer)
    assert {key for key in optimizer.state_dict() if key.startswith("cutwork")} == {"cutwork:0", "cutwork:2"}


def test_masks_can_be_given_and_taken_up_again_after_baking():
    model = mlp()
    x = torch.randn(2, 32)
    cw.sparsify(model, {"*": "block:4", "2": "2:4"}, density=0.25)
    model = model[:3]
    output = model(x)
    masks = cw.bake(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert torch.equal(model(x), output)
    cw.sparsify(model, {"0": "block:4", "2": "2:4"}, masks=masks, method=cw.RigL(every=1, until=10))
    assert all(torch.equal(model.get_submodule(name).sparsity.mask, mask) for name, mask in masks.items())
    assert torch.equal(model(x), output)


def test_zeros_that_are_there_stay_while_everything_trains():
    model = mlp()[:3]
    with torch.no_grad():
        model[0].weight[:, ::2] = 0
    sparsifier = cw.freeze_zeros(model)
    assert list(sparsifier.layers) == ["0"]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    sparsifier.attach(optimizer)
    before = model[0].weight.detach().clone()
    for _ in range(3):
        model(torch.randn(4, 32)).square().sum().backward()
        optimizer.step()
    assert not model[0].weight[:, ::2].any()
    assert (model[0].weight[:, 1::2] != before[:, 1::2]).all()


def test_zeros_can_be_frozen_in_tiles():
    model = mlp()[:1]
    with torch.no_grad():
        model[0].weight[:4, :4] = 0
        model[0].weight[8, 8] = 0
    sparsifier = cw.freeze_zeros(model, "block:4")
    assert int((~sparsifier.layers["0"].sparsity.mask).sum()) == 16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_layers_keep_their_dtype(dtype):
    model = mlp()[:3].to(dtype)
    sparsifier = cw.sparsify(model, "block:4", density=0.25, method=cw.RigL(every=1, until=9))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    for _ in range(3):
        model(torch.randn(4, 32, dtype=dtype)).square().mean().backward()
        optimizer.step()
    assert model[0].weight.dtype == dtype
    assert model(torch.randn(4, 32, dtype=dtype)).dtype == dtype


def test_representation_says_what_is_sparse():
    model = mlp()
    cw.sparsify(model, {"0": "block:4"}, density=0.25, method="supermask")
    assert "(sparsity): Learned(block:4, density 0.25)" in repr(model)


def test_deepcopy_and_pickle_keep_masks():
    import pickle

    model = mlp()
    cw.sparsify(model, "block:4", density=0.25)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other[0].sparsity.mask, model[0].sparsity.mask)
        assert torch.equal(other[0](torch.ones(1, 32)), model[0](torch.ones(1, 32)))


def test_a_call_that_takes_long_says_in_the_log_how_far_it_is(caplog):
    with caplog.at_level("INFO", logger="cutwork"):
        cw.sparsify(mlp(), "block:4", density=0.25)
    assert [record.message for record in caplog.records] == ["sparsify: 1 of 2 layers, 0", "sparsify: 2 of 2 layers, 2"]


# In a process of its own: the peak is that of its whole life. The first call loads what it needs.
PEAK = """
import re, sys
from dataclasses import dataclass
from pathlib import Path
import torch, cutwork as cw
from torch import nn

def mebibytes(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

torch.set_num_threads(1)
cw.sparsify(nn.Linear(64, 64), "block:16", density=0.1, storage=sys.argv[1])
model = nn.Sequential(*(nn.Linear(2048, 2048) for _ in range(8)))
before = mebibytes("VmRSS")
assert mebibytes("VmHWM") - before < 4, "to build the model took more than the model"
cw.sparsify(model, "block:16", density=0.1, storage=sys.argv[1])
print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak of a process")
@pytest.mark.parametrize(("storage", "most"), [("compressed", 3 * 16), ("dense", (2 + 8 / 4) * 16)])
def test_to_make_a_model_sparse_takes_memory_for_one_of_its_layers(storage, most):
    """Layers of 16 MiB: some of these to work with, and in dense storage a byte for each number of all."""
    # What is freed goes back to the system at once.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", PEAK, storage]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert float(done.stdout) < most


def test_a_method_whose_first_mask_is_not_made_of_tiles_changes_nothing_in_compressed_storage():
    @dataclass(frozen=True)
    class Diagonal(cw.Method):
        needs_gradient = False
        dense_gradient_share = 0.0

        def start(self, view, init):
            return torch.eye(*view.weight.shape) > 0

        def due(self, step):
            return False

        def move(self, view):
            return view.mask

        def hold(self, mask, weight, *, view, transposed):
            return cw.hold_fixed(mask, weight, view=view, transposed=transposed)

    model = mlp()
    with pytest.raises(ValueError, match=r"^0: the mask is not legal for block:4, so its units cannot be stored alone"):
        cw.sparsify(model, "block:4", density=0.25, method=Diagonal(), storage="compressed")
    assert type(model[0]) is nn.Linear
    assert list(cw.sparsify(model, "block:4", density=0.25, method=Diagonal()).layers) == ["0", "2"]
