import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import cutwork as cw

from .runs import (
    METHODS,
    Attends,
    Scaled,
    Tied,
    build,
    compressed_run,
    conv1d,
    everything,
    make_sparse,
    mlp,
    refuses,
    rewrite,
    to,
)


def test_tied_layers_share_one_sparsity_again(path):
    model = build(Tied)
    make_sparse(model)
    cw.save(model, path)
    loaded = build(Tied, seed=1)
    checkpoint = cw.load(path, loaded)
    assert list(checkpoint.layers) == ["first"]
    assert loaded.first.weight is loaded.second.weight
    assert loaded.first.sparsity is loaded.second.sparsity
    assert cw.describe(path).layers["first"].tied == ["second"]

    other = build(Tied, seed=1)
    other.second.__class__ = Scaled
    refuses("second is fixed unstructured .*, tied to second in the checkpoint, but no layer of this", path, other)


def test_only_the_attentions_that_were_open_are_opened(path):
    model = build(lambda: nn.Sequential(Attends(), Attends()))
    cw.sparsify(model, {"0.*": "block:4"}, density=0.5)
    cw.save(model, path)
    loaded = build(lambda: nn.Sequential(Attends(), Attends()), seed=1)
    cw.load(path, loaded)
    assert type(loaded[1].attention) is nn.MultiheadAttention
    assert everything(loaded) == everything(model)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: mlp(width=12),
            r"0.sparsity.mask is torch.bool \[8, 8\] in the checkpoint, but the model needs torch.bool \[12, 8\]",
        ),
        (lambda: mlp(dtype=torch.float64), r"first 0.weight: torch.float32 \[8, 8\] in .*, torch.float64 \[8, 8\] in"),
        (lambda: nn.Sequential(*mlp(), nn.Linear(8, 8)), "2 of 6 tensors differ, first 3.weight: nothing in the check"),
        (
            lambda: nn.Sequential(*mlp()[:2], nn.Linear(8, 8, bias=False)),
            r"1 of 6 .* first 2.bias: torch.float32 \[8\]",
        ),
        (
            lambda: nn.Sequential(nn.Linear(8, 8)),
            "2 is fixed unstructured at density 0.25, estimate=False in the check",
        ),
        (lambda: nn.Sequential(*mlp()[:2], Scaled(8, 8)), "no layer of this model that can be; build the model"),
        (lambda: nn.DataParallel(mlp()), "build the model that was saved, without what wraps it"),
        (
            lambda: nn.Sequential(*mlp().to("meta")),
            "0.weight is on the meta device and has no memory; name the device",
        ),
    ],
    ids=["shape", "dtype", "more", "bias", "fewer", "subclass", "wrapped", "meta"],
)
def test_another_model_is_refused(saved, make, words):
    model = make()
    before = repr(model)
    with pytest.raises(ValueError, match=words):
        cw.load(saved, model)
    assert repr(model) == before


def test_a_layer_of_another_orientation_is_refused(path):
    model = build(conv1d)
    make_sparse(model)
    cw.save(model, path)
    refuses("no layer of this model that can be", path, nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16)))


@pytest.mark.parametrize(
    ("pattern", "method", "density", "words"),
    [
        (
            "block:2",
            "rigl",
            0.25,
            ": 0 has pattern unstructured in the checkpoint, but pattern block:2 in the model; sparsify",
        ),
        (
            "unstructured",
            "srste",
            0.25,
            ": 0 has kind fixed and estimate False and decay none and decoupled none in the "
            ".* kind reprojected and .* and decay 0.01 and decoupled False",
        ),
        (
            "unstructured",
            "rigl-estimate",
            0.25,
            ": 0 has estimate False in the checkpoint, but estimate True in the model",
        ),
        ("unstructured", "rigl", 0.5, ": 0 has density 0.25 in the checkpoint, but density 0.5 in the model; sparsify"),
    ],
)
def test_a_model_sparse_in_another_way_is_refused(saved, pattern, method, density, words):
    model = build(seed=1)
    make_sparse(model, method, pattern, density=density)
    refuses(words, saved, model)


def test_a_model_with_more_sparse_layers_is_refused(path):
    model = build()
    cw.sparsify(model, {"0": "block:2"}, density=0.5)
    cw.save(model, path)
    other = build(seed=1)
    cw.sparsify(other, "block:2", density=0.5)
    refuses("2 is fixed block:2 at density 0.5, estimate=False in the model, but not sparse in the", path, other)


def test_a_model_may_be_sparse_in_part(saved):
    model = build(seed=1)
    cw.sparsify(model, {"2": "unstructured"}, density=0.25)
    cw.load(saved, model)
    reference = build()
    cw.load(saved, reference)
    assert everything(model) == everything(reference)


def test_the_storages_of_file_and_model_must_agree(path):
    model, *_ = compressed_run()
    cw.save(model, path)
    other = build()
    cw.sparsify(other, "block:2", density=0.4, method=METHODS["rigl"])
    refuses(
        r': 0 has storage compressed in the .* but storage dense in the model; pack\(model, forms="tiles"\) it',
        path,
        other,
    )
    cw.save(other, path)
    refuses(r": 0 has storage dense in the .*, but storage compressed in the model; unpack\(\) it first", path, model)


def test_a_layer_that_cannot_have_a_mask_is_refused(saved):
    model = build(seed=1)
    prune.identity(model[2], "weight")
    with pytest.raises(
        ValueError, match=r"2 is fixed .* in the checkpoint, but cannot be: its weight is computed anew"
    ):
        cw.load(saved, model)
    assert type(model[0]) is nn.Linear


def test_a_closed_attention_is_opened_only_where_the_file_says_so(path):
    model = build(Attends)
    cw.sparsify(model, {"*.q_proj": "block:2"}, density=0.5)
    cw.save(model, path)
    rewrite(path, to("attentions", value=[]))
    refuses("attention.q_proj is fixed .* but no layer of this model that can be", path, build(Attends, seed=1))
