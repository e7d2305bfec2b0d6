import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.composite import Factorized
from cutwork.sparsity.layout import Layout
from cutwork.transforms import wide_factorized

from . import members
from .nets import DENSITY_OF_PAIRS, call, make_inputs, make_net

# The module that splits heads, and how many projections it holds.
ATTENTION = {
    "bert": ("BertSelfAttention", 3),
    "gpt2": ("GPT2Attention", 2),
    "llama": ("LlamaAttention", 4),
}


def make_wide_mlp():
    return nn.Sequential(nn.Linear(20, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


@pytest.mark.parametrize("between", ["linear", "norm+relu"])
def test_convolutions_become_wide_dense_factors_at_the_dense_operations(between):
    torch.manual_seed(0)
    model, x = make_net("resnet-preactivation"), make_inputs("resnet-preactivation")
    larger = wide_factorized(model, 0.25, inputs=x, between=between)
    assert not larger.densities
    assert larger.flops_after == pytest.approx(cw.flops(model, x).dense, rel=1e-3)
    assert larger.flops_after == cw.flops(larger.model, x).dense
    pair = larger.model.blocks[0].conv1
    # Of 32 channels twice as many, and the rank that costs what 32 to 32 did, a little less for the wider stem.
    assert pair.first.weight.shape[1:] == (64, 3, 3)
    assert pair.first.weight.shape[0] <= 9 * 32 * 32 / (9 * 64 + 64) < pair.first.weight.shape[0] * 1.1
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


@pytest.mark.parametrize("name", ATTENTION)
def test_factors_stand_for_the_projections_of_attention_and_heads_become_more(name):
    model, inputs = make_net(name), make_inputs(name)
    larger = wide_factorized(model, DENSITY_OF_PAIRS.get(name, 0.25), inputs=inputs)
    kind, number = ATTENTION[name]
    attention, old = (
        next(module for module in each.modules() if type(module).__name__ == kind) for each in (larger.model, model)
    )
    pairs = {part: module for part, module in attention.named_children() if isinstance(module, Factorized)}
    assert len(pairs) == number
    for part, pair in pairs.items():
        outputs, inputs_before = Layout(
            tuple(old.get_submodule(part).weight.shape), transposed=name == "gpt2"
        ).matrix_shape
        assert pair.second.out_features >= 2 * outputs
        assert pair.first.in_features >= 2 * inputs_before
        assert pair.first.out_features < inputs_before
    assert not larger.densities
    assert larger.flops_after == pytest.approx(larger.flops_before, rel=1e-3)
    out = call(larger.model, inputs)
    assert out.shape == call(model, inputs).shape
    out.square().mean().backward()
    assert all(each.grad.isfinite().all() for each in larger.model.parameters())


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
