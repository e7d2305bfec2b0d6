import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.transforms import wide_factorized

from . import members


def make_wide_mlp():
    return nn.Sequential(nn.Linear(20, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


@pytest.mark.parametrize("between", ["linear", "norm+relu"])
def test_convolutions_become_wide_dense_factors_at_the_dense_operations(between):
    torch.manual_seed(0)
    model, x = members.make_model("resnet18")
    larger = wide_factorized(model, 0.25, inputs=x, between=between)
    assert not larger.densities
    assert larger.flops_after == pytest.approx(cw.flops(model, x).dense, rel=1e-3)
    assert larger.flops_after == cw.flops(larger.model, x).dense
    pair = larger.model.layer1[0].conv1
    # Of 64 channels twice as many, and the rank that costs what 64 to 64 did, a little less for the wider stem.
    assert pair.first.weight.shape[1:] == (128, 3, 3)
    assert pair.first.weight.shape[0] <= 9 * 64 * 64 / (9 * 128 + 128) < pair.first.weight.shape[0] * 1.1
    y = larger.model(x)
    assert y.shape == model(x).shape
    y.sum().backward()
    assert all(each.grad.isfinite().all() for each in larger.model.parameters())


def test_what_factors_cannot_stand_for_is_to_be_sparse():
    model, x = members.make_model("vit")
    larger = wide_factorized(model, 0.25, inputs=x)
    assert {name.rpartition(".")[2] for name in larger.densities} == {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert larger.flops_after == pytest.approx(larger.flops_before, rel=1e-3)
    cw.sparsify(larger.model, larger.patterns("unstructured"), density=larger.densities)
    assert cw.flops(larger.model, x).sparse == pytest.approx(larger.flops_before, rel=2e-3)


def test_where_whole_ranks_miss_the_budget_it_says_so():
    model, x = make_wide_mlp(), torch.rand(1, 20)
    with pytest.raises(ValueError, match="one more or less makes too much of so small a model; try a density near by"):
        wide_factorized(model, 0.25, inputs=x)
    assert model[2].weight.shape == (512, 512)


def test_bad_options_are_refused():
    model, x = make_wide_mlp(), torch.rand(1, 20)
    with pytest.raises(ValueError, match="unknown between='both'"):
        wide_factorized(model, 0.1, inputs=x, between="both")
    with pytest.raises(ValueError, match="density=1 keeps everything"):
        wide_factorized(model, 1.0, inputs=x)
