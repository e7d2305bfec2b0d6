import copy

import pytest
import torch
from torch import nn

import cutwork as cw


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 30), nn.Embedding(4, 4))


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}, [type(m) for m in model.modules()]


BAD = {
    "unknown pattern": (lambda m: cw.sparsify(m, "blok:4", density=0.1), "unknown pattern 'blok:4'; write"),
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
    "method": (lambda m: cw.sparsify(m, "block:4", density=0.1, method="rigel"), "unknown method 'rigel'; write"),
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
    "masks of others": (lambda m: cw.sparsify(m, "block:4", masks={"0": torch.ones(64, 32) > 0}), "differ in 2"),
    "mask shape": (
        lambda m: cw.sparsify(m, {"0": "block:4"}, masks={"0": torch.ones(4, 4) > 0}),
        "a mask is a bool tensor shaped like the weight",
    ),
    "mask illegal": (
        lambda m: cw.sparsify(m, {"0": "block:4"}, masks={"0": torch.eye(64, 32) > 0}),
        "the mask is not legal for block:4",
    ),
    "no zeros": (cw.freeze_zeros, "none of 2 layers has a unit of zeros"),
    "bake dense": (cw.bake, "the model has no sparse layer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained_and_changes_nothing(case):
    call, message = BAD[case]
    model = mlp()
    values, types = snapshot(model)
    with pytest.raises(ValueError, match=message):
        call(model)
    after, types_after = snapshot(model)
    assert types == types_after
    assert all(torch.equal(values[name], after[name]) for name in values)
    assert set(values) == set(after)


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
        ({"0": "block:4"}, r"0 shares its weight with 1 \(Linear\), which would stay dense"),
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
    with pytest.raises(ValueError, match=r"head shares its weight with embed \(Embedding\)"):
        cw.sparsify(model, "block:4", density=0.5)


def test_a_subclass_is_refused_by_name():
    class Loud(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ValueError, match=r"0 is a .*Loud, a subclass that may compute something else"):
        cw.sparsify(nn.Sequential(Loud(8, 8)), "block:4", density=0.5)


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="meta device"):
        cw.sparsify(nn.Sequential(nn.Linear(8, 8, device="meta")), "block:4", density=0.5)
    with pytest.raises(ValueError, match="none at all in this model"):
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
