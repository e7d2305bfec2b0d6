from dataclasses import replace

import pytest
import torch
from torch import nn

from cutwork.bench import models
from cutwork.bench.layers import Choices
from cutwork.bench.run import Run, worst_error
from cutwork.models import named as subjects

SMALL = {
    "names": ["mlp:32x64"],
    "layers": ["all"],
    "batches": [5],
    "patterns": ["block:16"],
    "densities": [0.25],
    "precisions": ["fp32"],
    "passes": ["forward"],
    "forms": ["dense", "packed"],
}


def model_groups(*, names, layers, batches, **options):
    return models.groups(names=names, layers=layers, batches=batches, choices=Choices(**options))


@pytest.mark.parametrize("work", ["forward", "step"])
@pytest.mark.parametrize("name", ["mlp:32x64", "linear:32x48", "tiny"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_packed_models_compute_and_train_like_masked_dense_ones(name, work, precision):
    (group,) = model_groups(**SMALL | {"names": [name], "passes": [work], "precisions": [precision]})
    candidates = group.candidates()
    assert [candidate.row.form for candidate in candidates] == ["dense", *["dense"] * (precision == "bf16"), "packed"]
    for candidate in candidates:
        with torch.no_grad():
            error = worst_error(candidate.build().results(), candidate.expected())
        assert error <= candidate.tolerance


def test_a_step_that_does_not_train_is_noticed():
    (group,) = model_groups(**SMALL | {"passes": ["step"]})
    packed = group.candidates()[-1]
    still = packed.build()
    first, _ = still.results()
    with torch.no_grad():
        assert worst_error([first, first], packed.expected()) > packed.tolerance


def test_the_ideal_counts_the_layers_that_stay_dense():
    (group,) = model_groups(**SMALL | {"layers": ["fc1"]})
    row = group.candidates()[-1].build().candidate.row
    assert (row.density, row.ideal, row.shape) == (0.25, 2 / (1 + 0.25), "mlp:32->64 fc1")


def test_choices_of_layers_leave_the_first_convolution_out():
    mlp = nn.ModuleList([nn.Linear(8, 8)])
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 8, 3), "conv": nn.Conv2d(8, 8, 3), "mlp": mlp, "head": nn.Linear(8, 2)})
    assert models.names_of(model, "all") == ["conv", "mlp.0", "head"]
    assert models.names_of(model, "linears") == ["mlp.0", "head"]
    assert models.names_of(model, "convs") == ["conv"]
    assert models.names_of(model, "mlp") == ["mlp.0"]
    assert models.names_of(model, "h*") == ["head"]
    with pytest.raises(
        ValueError,
        match=r"no layer is meant by 'heads' \(did you mean 'head'\?\); write all, linears, mlp, convs or a glob",
    ):
        models.names_of(model, "heads")


@pytest.mark.parametrize("name", ["resnet", "timm:", "mlp:3"])
def test_an_unknown_model_is_refused(name):
    with pytest.raises(ValueError, match=r"unknown (model|shape)"):
        subjects.make_subject(name)


def test_a_language_model_predicts_the_same_token_again_and_again():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = subjects.OneToken(transformers.LlamaForCausalLM(config)).eval()
    tokens = torch.tensor([[3], [4]])
    first, second = model(tokens), model(tokens)
    assert first.shape == (2, 1, 50)
    assert torch.equal(first, second)


def test_models_of_timm_and_torchvision_are_found_by_name():
    pytest.importorskip("timm")
    for name in ("timm:resnet10t", "torchvision:squeezenet1_1"):
        made = subjects.make_subject(name)
        assert made.inputs(2)[0].shape == (2, 3, 224, 224)
        assert isinstance(made.model, nn.Module)


def test_a_whole_run_has_ratios_of_its_own():
    (group,) = model_groups(**SMALL)
    run = Run()
    run.compare(group, seconds=1)
    assert all(row.equal and row.ratio for row in run.rows)


def test_bytes_are_those_of_kept_weights_and_their_index_without_embeddings():
    table = nn.Sequential(nn.Embedding(100, 32), nn.Linear(32, 32, bias=False))
    assert models._bytes(table, torch.float32) == 4 * 32 * 32
    (group,) = model_groups(**SMALL | {"names": ["linear:64x64"]})
    dense, packed = (candidate.build().candidate or candidate for candidate in group.candidates())
    assert dense.bytes == 4 * (64 * 64 + 64)
    # The index has at least a column for each tile and a pointer for each group.
    assert 4 * (64 * 16 + 64 + 4 + 5) <= packed.bytes < 4 * (64 * 16 + 64 + 100)


@pytest.mark.parametrize(
    ("name", "near"),
    [("timm:resnet5O", "resnet50"), ("timm:resnet50.nope", "resnet50"), ("torchvision:resnet5O", "resnet50")],
)
def test_an_unknown_model_of_a_package_is_a_wrong_input_with_near_misses(name, near):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=rf"^{name}: .*; did you mean .*{near}"):
        subjects.make_subject(name)
    with pytest.raises(ValueError, match="list_models"):
        subjects.make_subject(name.partition(":")[0] + ":zzzzzzzz")


def test_a_forward_pass_copies_no_model_that_it_would_not_change(monkeypatch):
    (group,) = model_groups(**SMALL)
    found = [candidate.build().candidate or candidate for candidate in group.candidates()]
    monkeypatch.setattr(models.copy, "deepcopy", lambda model: pytest.fail("a copy"))
    for candidate in found:
        candidate.build().results()
        candidate.expected()


def test_what_only_decodes_is_not_trained():
    with pytest.raises(ValueError, match="train cannot take llama-small: it decodes one token from a cache"):
        model_groups(**SMALL | {"names": ["llama-small"], "passes": ["step"]})


def test_nothing_is_made_of_a_form_that_is_not_built(monkeypatch):
    monkeypatch.setattr(models, "sparsify", lambda *arguments, **options: pytest.fail("it was made"))
    (group,) = model_groups(**SMALL)
    assert [candidate.row.density for candidate in group.candidates()] == [1, 0.25]


def test_the_right_results_of_forms_that_share_them_are_computed_once(monkeypatch):
    (group,) = model_groups(**SMALL | {"passes": ["step"], "forms": ["dense", "packed", "fused"]})
    built, count = models._runnable, []
    monkeypatch.setattr(models, "_runnable", lambda *arguments: count.append(1) or built(*arguments))
    for candidate in group.candidates():
        ready = candidate.build()
        ready.results()
        candidate.expected()
    # Of three forms to run and two masks, of which the first form is one.
    assert len(count) == 5


@pytest.mark.parametrize("pattern", ["block:16", "vector:16", "shuffled:16"])
def test_a_model_whose_masks_move_in_each_step_computes_what_dense_storage_does(pattern):
    (group,) = model_groups(**SMALL | {"passes": ["step"], "patterns": [pattern], "forms": ["dense", "moving"]})
    moving = group.candidates()[-1]
    ready = moving.build()
    assert moving.row.form == "moving" and ready.candidate.row.density == pytest.approx(0.25, abs=0.02)
    with torch.no_grad():
        assert worst_error(ready.results(), ready.candidate.expected()) <= moving.tolerance


def test_what_moves_cost_is_said_for_training_with_a_move_in_a_hundred_steps():
    row = models.Measurement("train", "mlp", 5, "step", "block:16", 0.25, "packed", "fp32", True, 0.0, median_ms=2.0)
    moving = replace(row, form="moving", median_ms=12.0)
    assert models.cost_of_moves([row, moving]) == (
        "Training by RigL, with a move every 100 steps, takes longer than packed by: mlp, block:16 at 0.25: 5.0%."
    )
    assert models.cost_of_moves([row]) == models.cost_of_moves([moving]) == ""
