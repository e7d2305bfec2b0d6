import pytest
import torch

import cutwork as cw

from .runs import build, everything, make_sparse, refuses, rewrite, to, train


@pytest.mark.parametrize("pattern", ["2:4", "2:4-tile", "2:4-tile-greedy"])
def test_a_mask_on_the_way_to_its_pattern_is_not_refused(path, pattern):
    for method, is_legal in (("gradual", False), ("static", True)):
        model = build()
        _, optimizer = make_sparse(model, method, pattern)
        train(model, optimizer, 0, 3)
        cw.save(model, path)
        assert cw.describe(path).layers["0"].mask_is_legal == is_legal
        loaded = build(seed=1)
        cw.load(path, loaded)
        assert everything(loaded) == everything(model)


def test_weights_outside_the_mask_are_not_lost(path):
    model = build()
    make_sparse(model)
    with torch.no_grad():
        model[0].weight.fill_(3)
    cw.save(model, path)
    loaded = build(seed=1)
    cw.load(path, loaded)
    assert everything(loaded) == everything(model)


def test_a_model_cast_after_it_was_made_sparse_keeps_its_dtypes(path):
    model = build()
    cw.sparsify(model, {"0": "unstructured"}, density=0.5, method=cw.Supermask(weight_bits=2))
    cw.sparsify(model, {"2": "unstructured"}, density=0.5, method=cw.RigL(every=2, until=4, estimate=True))
    model.double()
    cw.save(model, path)
    loaded = build(seed=1).double()
    cw.load(path, loaded)
    assert everything(loaded) == everything(model)


def test_a_mask_that_is_not_legal_is_refused(path):
    model = build()
    make_sparse(model, "static", "unstructured", density=0.6)
    cw.save(model, path)
    for pattern in ("2:4", "block:2", "shuffled:2"):
        rewrite(path, lambda description, tensors, new=pattern: description["layers"]["2"].update(pattern=new))
        refuses(f"2: the mask in the checkpoint is not legal for {pattern}; save it", path, build())


CRAFTED_FOR_DENSE = {
    "compressed": (
        lambda description, tensors: description["layers"]["0"].update(storage="compressed", pattern="block:2"),
        "0.sparsity.col is missing in the checkpoint",
    ),
    "a huge pattern": (to("layers", "0", "pattern", value="block:1000000000"), "not legal for block:1000000000"),
    "a pattern that fits no mask": (to("layers", "0", "pattern", value="1:3"), "1:3 cannot tile 8 inputs"),
    "an estimate that is missing": (
        to("layers", "0", "options", "estimate", value=True),
        "0.sparsity.energy_in is missing in the check",
    ),
    "a mask of a weight": (
        to("model", "0.sparsity.mask", value={"$tensor": "0.bias"}),
        "0.sparsity.mask is torch.float32",
    ),
    "a mask that is none": (to("model", "0.sparsity.mask", value=3), "0.sparsity.mask is no tensor in the checkpoint"),
    "a name for a mask": (
        lambda description, tensors: description["model"].update({"3.x": description["model"]["0.sparsity.mask"]}),
        "tensors differ, first 3.x: torch.bool .* tied to 0.sparsity.mask in the checkpoint, nothing in the model",
    ),
}


@pytest.mark.parametrize("what", CRAFTED_FOR_DENSE)
def test_a_file_that_would_make_a_model_unsound_is_refused(saved, what):
    change, words = CRAFTED_FOR_DENSE[what]
    rewrite(saved, change)
    refuses(words, saved, build(seed=1))
