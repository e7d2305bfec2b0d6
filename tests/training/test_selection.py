import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import cutwork as cw


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 30), nn.Embedding(4, 4))


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}, [type(m) for m in model.modules()]


def test_the_last_glob_that_matches_decides_and_dense_layers_stay_dense():
    model = mlp()
    cw.sparsify(model, {"*": "block:4", "2": "dense"}, density=0.25)
    assert [type(layer).__name__ for layer in model] == ["SparseLinear", "ReLU", "Linear", "Embedding"]
    model = mlp()
    cw.sparsify(model, {"*": "block:4", "2": "vector:4"}, density=0.25)
    assert str(model[2].sparsity.pattern) == "vector:4"


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


def test_a_skipped_layer_may_have_been_given_a_density_or_have_no_mask():
    sparsifier = cw.sparsify(awkward(), "block:16", density={"*": 0.25, "head": 0.5}, skip=True)
    assert sparsifier.layers["first"].sparsity.density == 0.25
    masks = cw.bake(nn.ModuleDict(sparsifier.layers))
    again = cw.sparsify(awkward(), "block:16", masks=masks, skip=True)
    assert list(again.layers) == list(masks)
