import copy
import pickle

import pytest
import torch
from torch import nn

import cutwork as cw

METHODS = {
    "fixed": cw.RigL(every=2, until=9),
    "fixed by estimate": cw.RigL(every=2, until=9, estimate=True),
    "reprojected": cw.srste(),
    "learned": cw.Supermask(),
}


def sparse_layer(method, storage="dense"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8, bias=False))
    cw.sparsify(model, "block:4", density=0.5, method=METHODS[method], storage=storage)
    return model[0]


CASES = [(method, "dense") for method in METHODS] + [("fixed", "compressed"), ("fixed by estimate", "compressed")]


@pytest.mark.parametrize(("method", "storage"), CASES)
def test_a_copy_is_followed_by_nobody_and_expects_no_gradient(method, storage):
    layer = sparse_layer(method, storage)
    layer.sparsity.follow(needs_gradient=True)
    layer.sparsity.expect_gradient(layer.trained, True)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not twin.sparsity.is_followed and not twin.sparsity.needs_gradient
        twin(torch.randn(4, 16)).sum().backward()
        assert twin.sparsity.before_update(twin.trained, 1.0, 0.1) is None
        assert [name for name, _ in twin.named_buffers()] == [name for name, _ in layer.named_buffers()]
    assert layer.sparsity.is_followed and layer.sparsity.needs_gradient


@pytest.mark.parametrize(("method", "storage"), CASES)
def test_after_its_release_nothing_is_expected(method, storage):
    layer = sparse_layer(method, storage)
    layer.sparsity.follow(needs_gradient=True)
    layer.sparsity.expect_gradient(layer.trained, True)
    layer.sparsity.release(layer.trained)
    layer(torch.randn(4, 16)).sum().backward()
    assert layer.sparsity.before_update(layer.trained, 1.0, 0.1) is None
    assert not layer.sparsity.is_followed and layer.sparsity.was_used


@pytest.mark.parametrize(("method", "storage"), CASES)
def test_to_read_the_weight_is_to_use_the_layer(method, storage):
    layer = sparse_layer(method, storage)
    layer.sparsity.follow(needs_gradient=False)
    assert not layer.sparsity.was_used
    if storage == "dense":
        layer.sparsity(layer.weight)
    else:
        layer.weight.sum()
    assert layer.sparsity.was_used
