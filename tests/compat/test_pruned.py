"""Models that others pruned become sparse models of ours, with the same outputs and the same masks."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import cutwork as cw
from cutwork.compat import pruned
from cutwork.patterns import parse


def mlp():
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))


def take_over(brought, model):
    """Do with a fresh model what the docs say."""
    model.load_state_dict(brought.weights)
    return cw.sparsify(model, brought.patterns, masks=brought.masks)


def two_four(weight):
    return parse("2:4").project(weight.detach().abs(), 0.5)


@pytest.fixture
def x():
    return torch.randn(5, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("live", [True, False])
def test_masks_of_torch_prune_are_taken_up(live, x, tmp_path):
    model = mlp()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.ln_structured(model[2], "weight", amount=8, n=2, dim=0)
    prune.random_unstructured(model[2], "bias", amount=0.5)
    torch.save(model.state_dict(), tmp_path / "pruned.pth")
    brought = pruned.read(model if live else tmp_path / "pruned.pth")
    assert brought.origin == "torch.nn.utils.prune"
    assert brought.patterns == {"*": "dense", "0": "unstructured", "2": "block:1x64"}
    assert [*brought.left_out] == ["2.bias"]
    fresh = mlp()
    sparsifier = take_over(brought, fresh)
    assert torch.equal(fresh(x), model(x))
    assert torch.equal(sparsifier.layers["0"].sparsity.mask, model[0].weight_mask.bool())


def test_a_live_model_becomes_an_ordinary_one(x):
    model = mlp()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    expected = model(x)
    brought = pruned.bake(model)
    assert not pruned.is_marked(model)
    assert {*dict(model.named_parameters())} == {"0.weight", "0.bias", "2.weight", "2.bias"}
    cw.sparsify(model, brought.patterns, masks=brought.masks)
    assert torch.equal(model(x), expected)


def test_masks_of_a_parametrization_are_taken_up(x):
    class FakeSparsity(nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.register_buffer("mask", mask)

        def forward(self, weight):
            return self.mask * weight

    model = mlp()
    parametrize.register_parametrization(model[0], "weight", FakeSparsity(two_four(model[0].weight)))
    expected = model(x)
    brought = pruned.read(model)
    assert (brought.origin, brought.patterns["0"]) == ("torch.ao.pruning", "2:4")
    fresh = mlp()
    take_over(brought, fresh)
    assert torch.equal(fresh(x), expected)
    pruned.bake(model)
    assert type(model[0]) is nn.Linear and torch.equal(model(x), expected)


def test_buffers_of_apex_are_taken_up_and_taken_off(x):
    model = mlp()
    for layer in (model[0], model[2]):
        mask = two_four(layer.weight)
        layer.register_buffer("__weight_mma_mask", mask)
        layer.register_buffer("__weight_mma_pruned_p", layer.weight.detach() * ~mask)
        layer.weight.data *= mask
    brought = pruned.read(model.state_dict())
    assert (brought.origin, brought.patterns) == ("apex ASP", {"*": "dense", "0": "2:4", "2": "2:4"})
    fresh = mlp()
    take_over(brought, fresh)
    assert torch.equal(fresh(x), model(x))
    expected = model(x)
    pruned.bake(model)
    assert {*model.state_dict()} == {*fresh.state_dict()} - {"0.sparsity.mask", "2.sparsity.mask"}
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("as_bits", [True, False])
def test_masks_of_maskllm_join_weights_from_elsewhere(as_bits, x, tmp_path):
    model = mlp()
    masks = {f"{name}.weight.mask": two_four(model.get_submodule(name).weight) for name in ("0", "2")}
    torch.save(model.state_dict(), tmp_path / "dense.pth")
    if as_bits:
        file = tmp_path / "mask_compressed.npz"
        np.savez_compressed(file, **{name: np.packbits(mask.numpy()) for name, mask in masks.items()})
    else:
        file = tmp_path / "mask.pt"
        torch.save(masks, file)
    with pytest.raises(ValueError, match="holds masks alone; give the weights"):
        pruned.read(file)
    brought = pruned.read(file, weights=tmp_path / "dense.pth")
    assert (brought.origin, brought.patterns) == ("MaskLLM", {"*": "dense", "0": "2:4", "2": "2:4"})
    fresh = mlp()
    take_over(brought, fresh)
    for name in ("0", "2"):
        weight = model.get_submodule(name).weight
        assert torch.equal(fresh.get_submodule(name).weight, weight * masks[f"{name}.weight.mask"])


def test_masks_of_another_model_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", **{"0.weight.mask": np.packbits(np.ones(64, dtype=bool))})
    with pytest.raises(ValueError, match=r"mask of 0\.weight has 64 bits, its weight 2048 entries"):
        pruned.read(tmp_path / "a.npz", weights=mlp())
    np.savez(tmp_path / "b.npz", **{"other.weight.mask": np.ones(4, dtype=bool)})
    with pytest.raises(ValueError, match=r"there is a mask for other\.weight"):
        pruned.read(tmp_path / "b.npz", weights=mlp())
    (tmp_path / "c.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:50])
    with pytest.raises(ValueError, match="no complete file of NumPy arrays"):
        pruned.read(tmp_path / "c.npz", weights=mlp())


def test_the_masks_of_shuffled_blocks_are_read_where_their_program_left_them(x):
    """There a buffer lies beside the weight, which an update may have left whole, and in layers that stay dense too."""
    model = mlp()
    mask = parse("shuffled:16").project(model[0].weight.detach().abs(), 0.25)
    state = dict(model.state_dict())
    state |= {"0.weight_mask": mask, "2.weight_mask": torch.ones(32, 64, dtype=torch.bool)}
    brought = pruned.read({"model": state, "acc": 93.1, "epoch": 12})
    assert (brought.origin, brought.patterns) == ("shuffled blocks", {"*": "dense", "0": "shuffled:16"})
    fresh = mlp()
    take_over(brought, fresh)
    model[0].weight.data *= mask
    assert torch.equal(fresh(x), model(x))


def test_shuffled_blocks_of_a_convolution_are_found_in_their_order_of_columns():
    """There a column is a place of the kernel in a channel; here channels lie together, which moves columns only."""
    blocks = torch.zeros(32, 16 * 9, dtype=torch.bool)
    order = torch.randperm(32)
    for group in order.split(16):
        blocks[group[:, None], torch.randperm(16 * 9)[:32]] = True
    model = nn.Sequential(nn.Conv2d(16, 32, 3))
    state = dict(model.state_dict()) | {"0.weight_mask": blocks.view(32, 16, 3, 3)}
    brought = pruned.read(state)
    assert brought.patterns["0"] == "shuffled:16"
    model.load_state_dict(brought.weights)
    cw.sparsify(model, brought.patterns, masks=brought.masks, storage="compressed")
    x = torch.randn(2, 16, 5, 5)
    torch.testing.assert_close(
        model(x), nn.functional.conv2d(x, brought.weights["0.weight"], brought.weights["0.bias"])
    )


def test_the_masks_of_sparse_ift_are_read_from_its_optimizer(x):
    model = mlp()
    mask = torch.rand(64, 32) < 0.3
    optimizer = {
        "state": {0: {"mask": mask, "sparsity": 0.7}},
        "param_groups": [{"names": ["0.weight"], "params": [0]}],
    }
    saved = {"state_dict": model.state_dict(), "epoch": 1, "mask_optimizer": optimizer}
    brought = pruned.read(saved)
    assert (brought.origin, brought.patterns) == ("Sparse-IFT", {"*": "dense", "0": "unstructured"})
    fresh = mlp()
    take_over(brought, fresh)
    assert torch.equal(fresh[0].sparsity.mask, mask)
    with pytest.raises(ValueError, match="mask_optimizer has no masks by name"):
        pruned.read(saved | {"mask_optimizer": {"state": {}}})


def test_zeros_are_masks_where_nothing_else_tells(x):
    model = mlp()
    with torch.no_grad():
        model[0].weight *= parse("block:16").project(torch.rand(64, 32), 0.25)
    brought = pruned.read(model.state_dict())
    assert brought.origin == "zeros" and [*brought.masks] == ["0"]
    fresh = mlp()
    take_over(brought, fresh)
    assert torch.equal(fresh(x), model(x))
    assert "tiles" in str(cw.pack(fresh, forms="tiles"))
    torch.testing.assert_close(fresh(x), model(x))


def test_the_parts_of_an_attention_get_masks_of_their_own():
    model = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    prune.l1_unstructured(model.self_attn, "in_proj_weight", amount=0.5)
    x = torch.randn(2, 7, 32)
    expected = model(x)
    brought = pruned.read(model)
    assert [*brought.masks] == ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    fresh = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    fresh.load_state_dict(brought.weights)
    cw.sparsify(fresh, brought.patterns, masks=brought.masks)
    torch.testing.assert_close(fresh(x), expected)


def test_what_is_not_pruned_is_said():
    with pytest.raises(ValueError, match="no layer has 1% of zeros or more: nothing here is pruned"):
        pruned.read(mlp())
    origin, weights = pruned.fold(mlp())
    assert origin == "zeros" and len(weights) == 4
    with pytest.raises(ValueError, match="weights of its own"):
        pruned.read(mlp(), weights=mlp())


def test_a_layer_that_keeps_nothing_is_left_out_with_the_reason():
    model = mlp()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.l1_unstructured(model[2], "weight", amount=1.0)
    brought = pruned.read(model)
    assert [*brought.masks] == ["0"]
    assert brought.left_out == {"2.weight": "it keeps nothing at all"}


def test_reading_a_model_leaves_it_alone():
    model = mlp()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    before = copy.deepcopy(model.state_dict())
    brought = pruned.read(model)
    brought.weights["0.weight"].zero_()
    assert all(torch.equal(held, before[name]) for name, held in model.state_dict().items())
