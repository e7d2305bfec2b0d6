import copy

import pytest
import torch
from torch import nn

import cutwork as cw

PATTERNS = ["unstructured", "block:16", "block:16x4", "vector:16", "shuffled:16", "2:4", "2:4-tile"]


def linear():
    torch.manual_seed(0)
    return nn.Linear(256, 256, bias=False), torch.randn(200, 256)


def convolution():
    torch.manual_seed(0)
    return nn.Conv2d(64, 64, 3, bias=False), torch.randn(4, 64, 12, 12)


def density_of(pattern):
    return None if cw.parse(pattern).density else 0.1


@pytest.mark.parametrize("init", ["magnitude", "random", "balanced", None])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("build", [linear, convolution])
def test_a_fresh_layer_returns_as_much_as_its_dense_form(build, pattern, init):
    layer, x = build()
    dense = copy.deepcopy(layer)
    cw.sparsify(layer, pattern, density=density_of(pattern), init=init)
    with torch.no_grad():
        assert layer(x).square().mean() / dense(x).square().mean() == pytest.approx(1, rel=0.2)


@pytest.mark.parametrize("pattern", ["block:16", "vector:16", "shuffled:16"])
@pytest.mark.parametrize("build", [linear, convolution])
def test_both_storages_and_layers_from_the_meta_device_begin_with_the_same_numbers(build, pattern):
    (dense, _), (compressed, _) = build(), build()
    options = {"density": 0.1, "init": "random", "rescale": True}
    cw.sparsify(dense, pattern, **options)
    cw.sparsify(compressed, pattern, **options, storage="compressed")
    assert torch.equal(compressed.weight, dense.weight)
    meta = nn.Sequential(copy.deepcopy(build()[0]).to("meta"))
    torch.manual_seed(0)
    cw.sparsify(meta, pattern, density=0.1, init="random", storage="compressed", device="cpu")
    again = nn.Sequential(build()[0])
    cw.sparsify(again, pattern, density=0.1, init="random")
    assert torch.equal(meta[0].weight, again[0].weight)


def test_the_factor_is_one_over_the_square_root_of_the_density_where_chance_chose_the_mask():
    layer, _ = linear()
    before = layer.weight.detach().clone()
    cw.sparsify(layer, "block:16", density=0.25, init="random")
    kept = layer.sparsity.mask
    factors = layer.weight.detach()[kept] / before[kept]
    assert factors.min() == pytest.approx(factors.max().item(), rel=1e-5)
    assert factors[0].item() == pytest.approx(2, rel=0.02)


def test_given_masks_count_too():
    layer, _ = linear()
    before = layer.weight.detach().clone()
    mask = torch.zeros(256, 256, dtype=torch.bool)
    mask[:, ::4] = True
    cw.sparsify(layer, "unstructured", masks={"": mask})
    assert layer.weight.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)


@pytest.mark.parametrize("rescale", [None, True])
def test_what_a_mask_keeps_in_whole_stays_bit_for_bit(rescale):
    layer, _ = linear()
    before = layer.weight.detach().clone()
    cw.sparsify(layer, "block:16", density=1.0, rescale=rescale)
    assert torch.equal(layer.weight, before)
    cw.bake(layer)
    cw.sparsify(layer, "block:16", density=0.25)
    before, masks = layer.weight.detach().clone(), cw.bake(layer)
    cw.sparsify(layer, "block:16", masks=masks, rescale=rescale)
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize(
    "method", [cw.Supermask(), cw.Supermask(weight_bits=4), cw.STE(), cw.Supermask(init="magnitude")]
)
def test_where_the_whole_weight_stays_behind_the_mask_all_of_it_is_scaled(method):
    layer, x = linear()
    dense = copy.deepcopy(layer)
    cw.sparsify(layer, "block:16", density=0.1, method=method)
    factors = layer.weight.detach() / dense.weight.detach()
    assert factors.min() == pytest.approx(factors.max().item(), rel=1e-4)
    with torch.no_grad():
        assert layer(x).square().mean() / dense(x).square().mean() == pytest.approx(1, rel=0.2)


def test_a_method_that_begins_dense_begins_with_the_weights_as_they_are():
    layer, _ = linear()
    before = layer.weight.detach().clone()
    cw.sparsify(layer, "block:16", density=0.1, method=cw.Gradual(every=10, until=100))
    assert torch.equal(layer.weight, before)


def test_a_trained_model_is_left_as_it_is_unless_the_user_says_otherwise(trained_on_digits, caplog):
    model = trained_on_digits(width=64, epochs=2)
    before = model[1].weight.detach().clone()
    asked = copy.deepcopy(model)
    with caplog.at_level("INFO", logger="cutwork"):
        cw.sparsify(model, {"1": "block:16"}, density=0.25)
    kept = model[1].sparsity.mask
    assert torch.equal(model[1].weight[kept], before[kept])
    assert caplog.records[0].message == (
        "the weights look trained; they are not scaled to their first masks, which keep the best by magnitude"
    )
    cw.sparsify(asked, {"1": "block:16"}, density=0.25, rescale=True)
    assert asked[1].weight.norm().item() == pytest.approx(before.norm().item(), rel=1e-5)


def test_a_fresh_model_is_left_as_it_is_where_the_user_says_so():
    layer, _ = linear()
    before = layer.weight.detach().clone()
    cw.sparsify(layer, "block:16", density=0.25, rescale=False)
    assert torch.equal(layer.weight, before * layer.sparsity.mask)


def test_anything_but_yes_and_no_is_refused():
    with pytest.raises(TypeError, match="rescale is True, False, or None"):
        cw.sparsify(linear()[0], "block:16", density=0.1, rescale="yes")
