import copy

import numpy as np
import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.swap import sparse_layers


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
    "fixed density": (
        lambda m: cw.sparsify(m, {"0": "2:4"}, density=0.1),
        "^0: 2:4 fixes the density at 0.5; got density=0.1 for it; leave that out",
    ),
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
        "an amount is given for 'x', which matches no chosen layer; the chosen ones are 0, 2",
    ),
    "density missing": (lambda m: cw.sparsify(m, "block:4", density={"0": 0.1}), "gives an amount to 2; add one"),
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
        "Supermask chooses its first masks itself",
    ),
    "masks of a dense beginning": (
        lambda m: cw.sparsify(m, "block:4", masks={}, method=cw.Switch(cw.Static(), sparse_from=2)),
        "Switch chooses its first masks itself",
    ),
    "masks of a supermask that ends dense": (
        lambda m: cw.sparsify(m, "block:4", masks={}, method=cw.Switch(cw.Supermask(), dense_from=2)),
        "Switch chooses its first masks itself",
    ),
    "init of a dense beginning": (
        lambda m: cw.sparsify(
            m, "block:4", density=0.1, init="random", method=cw.Switch(cw.Static(), sparse_from=0.1), steps=100
        ),
        "init='random' does not reach Switch",
    ),
    "init of a supermask": (
        lambda m: cw.sparsify(m, "block:4", density=0.1, init="magnitude", method="supermask"),
        r"init='magnitude' does not reach Supermask, .* Supermask\(init=...\)",
    ),
    "too coarse": (
        lambda m: cw.sparsify(m, {"0": "block:64x32"}, density=0.1),
        r"^0: block:64x32 cuts its 64x32 weight into 1 unit, too coarse to keep 0.1 of it; use smaller tiles, "
        r"a larger density, or {'0': 'dense'}",
    ),
    "fixed densities": (
        lambda m: cw.sparsify(m, {"0": "2:4"}, sparsity={"0": 0.75}),
        "^0: 2:4 fixes the density at 0.5; got density=0.25 for it; leave that out",
    ),
    "fixed densities beside others": (
        lambda m: cw.sparsify(m, {"0": "2:4", "2": "block:2"}, density={"*": 0.25}),
        "^0: 2:4 fixes the density at 0.5; got density=0.25 for it; leave that out",
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
        r"^2: the allocation's density=1.5 is outside \(0, 1\]",
    ),
    "score of nan": (
        lambda m: cw.sparsify(m, "block:4", density=0.5, init=lambda weight, grad, generator: weight * torch.nan),
        "^0: scores hold nan",
    ),
    "sparsity glob": (lambda m: cw.sparsify(m, "block:4", sparsity={"*": 1.0}), r"sparsity=1.0 is outside \[0, 1\)"),
    "no zeros": (cw.freeze_zeros, "of 2 layers none has a unit of zeros"),
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


PATTERNS = {"unstructured": 0.2, "block:8": 0.2, "vector:8": 0.2, "shuffled:8": 0.2, "2:4": None, "2:4-tile": None}


def masks_of(model):
    return [layer.sparsity.mask for layer in sparse_layers(model).values()]


@pytest.mark.parametrize("method", [cw.Static(), cw.set_(every=10), cw.SRigL(every=10), cw.GraNet(every=10)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_fresh_weights_get_a_balanced_first_mask(pattern, method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Conv2d(16, 24, 3))
    asked = copy.deepcopy(model)
    cw.sparsify(model, pattern, density=PATTERNS[pattern], method=method, steps=100, seed=3)
    cw.sparsify(asked, pattern, density=PATTERNS[pattern], method=method, steps=100, seed=3, init="balanced")
    assert all(torch.equal(one, other) for one, other in zip(masks_of(model), masks_of(asked), strict=True))
    assert all(mask.flatten(1).any(dim=1).all() for mask in masks_of(model))


def test_a_fresh_layer_among_trained_ones_is_as_they_are(trained_on_digits):
    model = trained_on_digits(width=64, epochs=2)
    model.append(nn.Linear(10, 64))
    asked = copy.deepcopy(model)
    cw.sparsify(model, "unstructured", density=0.25)
    cw.sparsify(asked, "unstructured", density=0.25, init="magnitude", rescale=False)
    assert all(torch.equal(one, other) for one, other in zip(masks_of(model), masks_of(asked), strict=True))
    assert torch.equal(model[-1].weight, asked[-1].weight)


def test_masks_that_were_folded_in_are_found_again():
    model = mlp()
    cw.sparsify(model, "unstructured", density=0.25)
    masks = cw.bake(model)
    cw.sparsify(model, "unstructured", density=0.25)
    assert all(torch.equal(model.get_submodule(name).sparsity.mask, mask) for name, mask in masks.items())


@pytest.mark.parametrize("method", [cw.STE(keep=cw.energy), cw.Switch(cw.STE(keep=cw.energy), dense_from=0.5)])
def test_ste_begins_with_the_score_that_it_goes_on_with(method):
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    expected = cw.parse("2:4-tile").project(layer.weight.detach().square(), 0.5)
    cw.sparsify(layer, "2:4-tile", method=method, steps=100)
    assert torch.equal(layer.sparsity.mask, expected)
