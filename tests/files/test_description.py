import json

import pytest
import torch
from torch import nn

import cutwork as cw

from .runs import build, make_sparse, refuses, rewrite, to, without


def test_a_newer_version_is_refused(saved):
    rewrite(saved, lambda description, tensors: description.update(version=4))
    refuses("is a checkpoint of version 4; this cutwork reads versions up to 3; use", saved, build())
    with pytest.raises(ValueError, match="is a checkpoint of version 4"):
        cw.describe(saved)


STATE = ("optimizers", 0, "state")
CRAFTED = {
    "a part less": (without("extra"), "the description lacks 'extra'"),
    "a part more": (to("more", value=1), "the description has 'more', which is unknown"),
    "no version": (without("version"), "it is a checkpoint of version None"),
    "layers that are none": (to("layers", value=[]), "the description/layers is .., but must be an object"),
    "a record less": (without("layers", "0", "kind"), "layers/0 lacks 'kind'"),
    "a record more": (to("layers", "0", "mood", value=1), "layers/0 has 'mood', which is unknown"),
    "an unknown kind": (to("layers", "0", "kind", value="x"), "layers/0 is of the kind 'x', but there are fixed, repr"),
    "an unknown storage": (
        to("layers", "0", "storage", value="x"),
        "layers/0 has the storage 'x', but there are dense",
    ),
    "an unknown option": (to("layers", "0", "options", "x", value=1), "layers/0/options has 'x', which is unknown"),
    "an unknown pattern": (to("layers", "0", "pattern", value="x"), "unknown pattern 'x'"),
    "a density": (
        to("layers", "0", "density", value=float("nan")),
        "layers/0/density is nan, but must be a number from",
    ),
    "a pattern without tiles": (
        to("layers", "0", "storage", value="compressed"),
        "0 is compressed: unstructured has no",
    ),
    "a learned one": (
        lambda description, tensors: description["layers"]["0"].update(
            kind="reprojected", options={"decay": 0.0}, storage="compressed", pattern="block:2"
        ),
        "layers/0 is compressed, which only fixed masks are",
    ),
    "a layer twice": (to("layers", "0", "tied", value=["2"]), "2 is described twice"),
    "a layer tied to itself": (to("layers", "0", "tied", value=["0"]), "0 is described twice"),
    "an attention": (to("attentions", value=["1"]), "1 is an attention in the checkpoint, but none in the model"),
    "a huge shape": (to("model", "0.sparsity.mask", "shape", value=[10**6, 10**5]), "in another form than elsewhere"),
    "a tensor that is missing": (
        to("model", "0.bias", value={"$tensor": "x"}),
        "0.bias is the tensor 'x', which the file",
    ),
    "a number": (to("model", "0.bias", value=3), "first 0.bias: no tensor in the checkpoint"),
    "deep": (to("extra", "a", value=json.loads("[" * 300 + "]" * 300)), "extra lies more than 100 deep"),
    "extra": (to("extra", value={"$tuple": []}), "the description has .* where names stand"),
    "a state of another shape": (
        lambda description, tensors: tensors.update({"@optimizer/0/1/exp_avg": torch.ones(3)}),
        r"AdamW remembers exp_avg \[3\] of a parameter \[8\], where it needs \[8\]; load an earlier",
    ),
    "a state less": (without(*STATE, 1, 1, "exp_avg"), r"AdamW remembers exp_avg None of a parameter \[8\], where it"),
    "a state of numbers": (
        to(*STATE, 1, 1, "exp_avg", value=1.0),
        r"AdamW remembers exp_avg 1.0 of a parameter \[8\], where",
    ),
    "a state of the wrong parameter": (to(*STATE, 0, 0, value=1), "a place stands twice"),
    "a state of no parameter": (to(*STATE, 0, 0, value=9), "it remembers something of parameter 9, which it does not"),
    "a step": (to(*STATE, 0, 1, "step", value="x"), "AdamW refuses the state that was saved: "),
    "steps below zero": (
        lambda description, tensors: tensors.update({"@optimizer/0/1/step": torch.tensor(-1.0)}),
        "AdamW remembers step",
    ),
    "a state that is none": (to(*STATE, 0, 1, value={"$tuple": []}), "the description has .* where names stand"),
    "a group less": (
        to("optimizers", 0, "rest", "param_groups", value=[]),
        "its groups have not as many places as parameters",
    ),
    "no groups": (to("optimizers", 0, "rest", value={}), "param_groups is None, but must be a list"),
    "a place less": (
        lambda description, tensors: description["optimizers"][0]["rest"]["param_groups"][0]["params"].pop(),
        "its groups have not as many places as parameters",
    ),
    "a place that is none": (
        to("optimizers", 0, "rest", "param_groups", 0, "params", value=[0, 1, 2, None]),
        "param_groups/0/params/3 is None, but must be a whole number",
    ),
    "no rate": (
        without("optimizers", 0, "rest", "param_groups", 0, "lr"),
        "AdamW can take no step with the settings that were saved; load",
    ),
    "a rate of text": (
        to("optimizers", 0, "rest", "param_groups", 0, "lr", value="x"),
        "AdamW can take no step with the settings",
    ),
    "betas": (
        to("optimizers", 0, "rest", "param_groups", 0, "betas", value=[0.1]),
        "AdamW can take no step with the settings",
    ),
    "steps in the groups": (
        to("optimizers", 0, "rest", "param_groups", 0, "cutwork:0", value="x"),
        "param_groups/0/cutwork:0 is 'x', but must be a whole number",
    ),
    "a sparsifier's state": (
        to("optimizers", 0, "rest", "cutwork:0", value={}),
        "cutwork:0, which belongs to a sparsifier",
    ),
    "steps": (to("sparsifiers", 0, "state", "steps_done", value=-1), "steps_done is -1, but must be a whole number"),
    "exploration": (to("sparsifiers", 0, "state", "exploration", value=[]), "exploration is .., but must be an object"),
    "explored shapes": (
        to("sparsifiers", 0, "state", "exploration", "0", "ever", value={"$tensor": "0.bias"}),
        r"the exploration of 0 is torch.float32 \[8\], where its mask is \[8, 8\]",
    ),
    "turnovers": (
        to("sparsifiers", 0, "state", "exploration", "0", "turnovers", value=["x"]),
        "exploration/0/turnovers/0 is 'x', but must be a number",
    ),
}


def test_copies_of_next_to_nothing_are_refused(path):
    model = nn.Sequential(nn.Linear(256, 256, bias=False))
    cw.sparsify(model, "unstructured", density=0.001)
    cw.save(model, path)

    def many(description, tensors):
        node, kept = description["model"]["0.weight"], tensors["0.weight"]
        description["extra"] = {str(number): {**node, "$kept": f"copy{number}"} for number in range(300)}
        tensors.update({f"copy{number}": kept for number in range(300)})

    rewrite(path, many)
    other = nn.Sequential(nn.Linear(256, 256, bias=False))
    refuses(r"its \d+ bytes of tensors ask for \d+ bytes, more than they and the model account for", path, other)


@pytest.mark.parametrize("what", CRAFTED)
def test_a_file_with_true_digests_and_wrong_content_is_refused(saved, what):
    change, words = CRAFTED[what]
    rewrite(saved, change)
    model = build(seed=1)
    sparsifier, optimizer = make_sparse(model, track=True)
    refuses(words, saved, model, sparsifier, optimizer)


@pytest.mark.parametrize("changes", [without("layers", "0", "kind"), to("attentions", value=3), to("version", value=9)])
def test_a_description_of_another_form_is_not_described(saved, changes):
    rewrite(saved, changes)
    with pytest.raises(ValueError, match=f"^{saved}: .*"):
        cw.describe(saved)
