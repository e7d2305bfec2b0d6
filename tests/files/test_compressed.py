import pytest
import torch
from torch import nn

import cutwork as cw

from .runs import Tied, bits, build, compressed_run, conv1d, encoder, mlp, packed, refuses, rewrite

pytestmark = pytest.mark.grid

COMPRESSED_METHODS = ("static", "gradual", "granet", "rigl", "rigl-estimate", "set", "srigl")


@pytest.mark.parametrize("pattern", ["block:4", "block:3x5", "vector:4", "shuffled:4"])
@pytest.mark.parametrize("method", COMPRESSED_METHODS)
@pytest.mark.parametrize("make", [mlp, encoder, conv1d, Tied])
def test_a_dense_model_becomes_the_saved_compressed_one(path, make, method, pattern):
    model, *_ = compressed_run(make, method, pattern)
    cw.save(model, path)
    other = build(make, seed=5)
    cw.load(path, other)
    assert repr(other) == repr(model)
    assert bits(dict(other.state_dict())) == bits(dict(model.state_dict()))
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in model.named_parameters()]
    x = torch.randn(3, 8)
    assert torch.equal(other(x), model(x))


def test_a_file_of_a_compressed_model_holds_little_more_than_what_is_kept(path):
    model = nn.Sequential(nn.Linear(512, 512, bias=False))
    cw.sparsify(model, "block:16", density=0.1, storage="compressed")
    cw.save(model, path)
    assert path.stat().st_size < 0.12 * 512 * 512 * 4


def test_a_layer_in_bfloat16_of_an_earlier_file_needs_a_model_packed_alike(path):
    model = packed({"0": "tiles-bf16", "2": "tiles"})
    cw.save(model, path)

    def age(description, tensors):
        description["version"] = 2
        for record in description["layers"].values():
            del record["converts"]

    rewrite(path, age)
    refuses(r"0 holds torch.bfloat16 in .* call pack\(model, forms=\{'0': 'tiles-bf16'\}\) before", path, build(seed=1))
    other = packed({"0": "tiles-bf16", "2": "tiles"}, seed=1)
    cw.load(path, other)
    assert bits(dict(other.state_dict())) == bits(dict(model.state_dict()))


INDEX_DAMAGES = {
    "a col": ("0.sparsity.col", lambda col: col.index_fill(0, torch.tensor([0]), 100), "units of 2 inputs begin at"),
    "a ptr": ("0.sparsity.ptr", lambda ptr: ptr + 1, "ptr must rise from 0 to the number of units"),
    "dtype": ("0.sparsity.ptr", lambda ptr: ptr.long(), r"0.sparsity.ptr.* torch.int64 \[5\] in the checkpoint"),
    "values": ("0.values", lambda values: values[1:], r"has values of shape|\[5, 2, 2\] in the check"),
    "dtype of values": ("0.values", lambda values: values.double(), r"0.values.* torch.float64 \[6, 2, 2\] in the"),
}


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("what", INDEX_DAMAGES)
def test_a_damaged_index_in_a_file_is_refused_before_anything_changes(path, what, is_compressed):
    model, sparsifier, optimizer = compressed_run()
    cw.save(model, path, sparsifier=sparsifier, optimizer=optimizer)
    key, damage, words = INDEX_DAMAGES[what]
    rewrite(path, lambda description, tensors: tensors.update({key: damage(tensors[key])}))
    if is_compressed:
        other, sparsifier, optimizer = compressed_run()
        refuses(words, path, other, sparsifier, optimizer)
    else:
        refuses(words, path, build())


def test_a_compressed_weight_that_does_not_fit_the_model_is_refused(path):
    model, *_ = compressed_run()
    cw.save(model, path)
    refuses(r"0.bias: torch.float32 \[8\] in the checkpoint, torch.float32 \[12\] in the model", path, mlp(width=12))


def none_kept_of_a_huge_pattern(description, tensors):
    description["layers"]["0"]["pattern"] = "block:1000000000"
    tensors["0.values"] = torch.zeros(0, 1_000_000_000, 1_000_000_000)
    tensors["0.sparsity.ptr"] = torch.zeros(2, dtype=torch.int32)
    tensors["0.sparsity.col"] = torch.zeros(0, dtype=torch.int32)


def test_what_is_kept_of_nothing_takes_no_memory(path):
    model, *_ = compressed_run()
    cw.save(model, path)
    rewrite(path, none_kept_of_a_huge_pattern)
    refuses("0 keeps no unit, and those of block:1000000000 are larger than it is; save it with", path, build(seed=1))
