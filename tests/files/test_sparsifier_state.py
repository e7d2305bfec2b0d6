import pytest

import cutwork as cw

from .runs import METHODS, build, make_sparse, refuses, rewrite


def test_another_sparsifier_is_refused(saved):
    model = build(seed=1)
    sparsifier = cw.sparsify(model, {"0": "unstructured"}, density=0.25, method=METHODS["rigl"])
    refuses("move different layers; they differ in 2; make it", saved, model, sparsifier)
    foreign, _ = make_sparse(build(seed=1))
    refuses("the sparsifier moves 0, which is no sparse layer of this model", saved, model, foreign)
    with pytest.raises(ValueError, match="the sparsifier moves 0, which is no sparse layer of this model"):
        cw.save(model, saved, sparsifier=foreign)


def test_a_sparsifier_of_another_method_is_refused(path):
    model = build()
    sparsifier, _ = make_sparse(model)
    cw.save(model, path, sparsifier=sparsifier)
    other = build(seed=1)
    static = cw.sparsify(other, "unstructured", density=0.25)
    refuses("the sparsifier saved moves masks by RigL, the one given by Static; sparsify", path, other, static)
    rewrite(path, lambda description, tensors: description["sparsifiers"][0].pop("method"))
    cw.load(path, other, sparsifier=static)


def test_exploration_that_was_not_saved_is_refused(path):
    model = build()
    sparsifier, _ = make_sparse(model)
    cw.save(model, path, sparsifier=sparsifier)
    other = build(seed=1)
    tracked, _ = make_sparse(other, track=True)
    refuses("the sparsifier was saved without exploration; make this with track=False", path, other, tracked)
    cw.save(model, path)
    refuses("holds 0 sparsifiers; got 1; give as many, or none", path, other, tracked)
