"""A place for a checkpoint, and one of a run that has moved masks."""

import pytest

import cutwork as cw

from .runs import build, make_sparse, train


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path):
    """A checkpoint of a run that has moved masks, with its sparsifier and optimizer."""
    model = build()
    sparsifier, optimizer = make_sparse(model, track=True)
    train(model, optimizer, 0, 3)
    cw.save(model, path, sparsifier=sparsifier, optimizer=optimizer, extra={"epoch": 3})
    return path
