import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.transforms import doped

from . import members


@pytest.mark.parametrize(("density", "rank"), [(0.5, 28), (0.25, 43), (0.05, 54)])
def test_ranks_are_the_published_ones_and_the_pair_stays_dense(density, rank):
    model, x = nn.Sequential(nn.Conv2d(64, 64, 3, bias=False)), torch.rand(1, 64, 3, 3)
    larger = doped(model, density, inputs=x, layers="*")
    assert larger.model[0].pair.first.weight.shape == (rank, 64, 3, 3)
    assert list(larger.densities) == ["0.sparse"]
    assert larger.densities["0.sparse"] == pytest.approx(density, abs=0.02)


def test_a_copy_begins_with_a_pair_that_is_silent_and_learns():
    model, x = members.make_model("mlp")
    larger = doped(model, 0.25, inputs=x, weights="copy").model[2]
    assert torch.equal(larger.sparse.weight, model[2].weight)
    assert not larger.pair.second.weight.any()
    larger(torch.rand(2, 64)).sum().backward()
    assert larger.pair.second.weight.grad.any()


def test_a_layer_too_small_for_a_pair_is_named():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"1: at density=0.5 a pair of rank 1 costs more than a layer of 2 inputs"):
        cw.transforms.doped(model, 0.5, inputs=torch.rand(1, 4))
