import copy

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.compressed import CompressedLinear

PATTERNS = ["block:4", "block:5x3", "vector:4", "shuffled:4", "shuffled:4x1"]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(23, 18), nn.ReLU(), nn.Linear(18, 11))


@pytest.mark.parametrize("estimate", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_unpack_undoes_pack_to_the_bit(pattern, estimate):
    model = mlp()
    method = cw.RigL(until=200, estimate=estimate)
    cw.sparsify(model, pattern, density=0.3, method=method)
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    layers = list(model)
    x = torch.randn(5, 23)
    cw.pack(model, forms="tiles")
    assert all(isinstance(layer, CompressedLinear) for layer in (model[0], model[2]))
    torch.testing.assert_close(model(x), before(x))
    assert not model[0].values.requires_grad
    assert cw.unpack(model) is model
    assert all(one is other for one, other in zip(model, layers, strict=True))
    assert repr(model) == repr(before)
    states = model.state_dict(), before.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    for one, other in zip(model.parameters(), before.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in before.named_parameters()]
    assert torch.equal(model(x), before(x))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_packing_is_what_storing_compressed_from_the_start_is(pattern):
    packed, compressed = mlp(), mlp()
    cw.sparsify(packed, pattern, density=0.3)
    cw.pack(packed, forms="tiles")
    cw.sparsify(compressed, pattern, density=0.3, storage="compressed")
    states = packed.state_dict(), compressed.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_globs_name_what_is_unpacked():
    model = mlp()
    cw.sparsify(model, "block:4", density=0.3)
    cw.pack(model, forms={"*": "dense", "2": "tiles"})
    assert not isinstance(model[0], CompressedLinear)
    assert isinstance(model[2], CompressedLinear)
    cw.pack(model, forms="tiles")
    with pytest.raises(ValueError, match=r"unpack: no layer that could be unpacked matches 'fc\*'; the sparse layers"):
        cw.unpack(model, ["0", "fc*"])
    cw.unpack(model, ["0"])
    assert not isinstance(model[0], CompressedLinear)
    assert isinstance(model[2], CompressedLinear)


def test_what_has_no_tiles_is_left_alone_unless_it_is_named():
    model = mlp()
    cw.sparsify(model, {"0": "block:4", "2": "unstructured"}, density=0.3)
    with pytest.raises(ValueError, match="2 cannot take the form 'tiles': unstructured has no tiles to store; use"):
        cw.pack(model, forms={"*": "tiles"})
    cw.pack(model, forms="tiles")
    assert [type(layer).__name__ for layer in model] == ["CompressedLinear", "ReLU", "SparseLinear"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: None, "the model has no sparse layer; sparsify"),
        (lambda model: cw.sparsify(model, "2:4"), "no layer can take the form 'tiles'; 0: 2:4 has no tiles to store"),
        (
            lambda model: cw.sparsify(model, "block:4", density=0.3, method="supermask"),
            "0: its mask is learned from the whole weight, which compressed storage does not have",
        ),
    ],
)
def test_a_model_without_anything_to_pack_is_refused(make, message):
    model = nn.Sequential(nn.Linear(16, 16))
    make(model)
    with pytest.raises(ValueError, match=message):
        cw.pack(model, forms="tiles")


def test_unpacking_needs_a_compressed_layer():
    with pytest.raises(ValueError, match=r"unpack: the model has no compressed layer; pack\(\) it first"):
        cw.unpack(mlp())


def to_tiles(model):
    cw.pack(model, forms="tiles")


@pytest.mark.parametrize("convert", [to_tiles, cw.unpack])
def test_layers_that_a_sparsifier_moves_are_refused_until_it_is_detached(convert):
    model = mlp()
    storage = "dense" if convert is to_tiles else "compressed"
    method = cw.RigL(every=1, until=9)
    sparsifier = cw.sparsify(model, "block:4", density=0.3, method=method, rescale=False, storage=storage)
    sparsifier.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"0 is moved by a sparsifier .* detach\(\) the sparsifier"):
        convert(model)
    sparsifier.detach()
    convert(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    masks = model[0].sparsity.mask.clone()
    model(torch.randn(4, 23)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].sparsity.mask, masks)


def test_a_weight_that_is_not_zero_outside_its_mask_would_be_lost_and_is_refused():
    model = mlp()
    cw.sparsify(model, "block:4", density=0.3)
    with torch.no_grad():
        model[2].weight.fill_(1.0)
    with pytest.raises(ValueError, match="2 cannot take the form 'tiles': its weight is not zero outside its mask"):
        cw.pack(model, forms={"*": "tiles"})
    assert not isinstance(model[0], CompressedLinear)


def test_baking_a_compressed_model_is_baking_a_dense_one():
    dense, compressed = mlp(), mlp()
    cw.sparsify(dense, "block:5x3", density=0.3)
    cw.sparsify(compressed, "block:5x3", density=0.3, storage="compressed")
    masks, expected = cw.bake(compressed), cw.bake(dense)
    assert repr(compressed) == repr(dense)
    assert all(torch.equal(masks[name], expected[name]) for name in expected)
    states = compressed.state_dict(), dense.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(("source", "target"), [("dense", "compressed"), ("compressed", "dense")])
def test_masks_are_copied_from_one_storage_to_another(source, target):
    models = []
    for seed, storage in enumerate((source, target)):
        models.append(mlp())
        cw.sparsify(models[-1], "block:4", density=0.3, init="random", seed=seed, storage=storage)
    cw.copy_masks(*models)
    for one, other in ((models[0][0], models[1][0]), (models[0][2], models[1][2])):
        assert torch.equal(one.sparsity.mask, other.sparsity.mask)
        assert not other.sparsity.matrix(other.trained)[~other.sparsity.mask].any()


def test_an_average_of_compressed_layers_whose_masks_have_moved_is_refused():
    model = mlp()
    method = cw.RigL(every=1, until=9)
    sparsifier = cw.sparsify(model, "block:4", density=0.3, method=method, rescale=False, storage="compressed")
    average = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    cw.copy_masks(model, average)
    model(torch.randn(4, 23)).square().sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="0: both are compressed, and the mask of one has moved since"):
        cw.copy_masks(model, average)


def test_an_average_is_given_no_index_of_a_moved_mask_by_its_updates():
    model = mlp()
    sparsifier = cw.sparsify(model, "block:4", density=0.3, method=cw.RigL(every=2, until=9), storage="compressed")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    average = torch.optim.swa_utils.AveragedModel(model)
    for step in range(2):
        cw.copy_masks(model, average.module)
        optimizer.zero_grad()
        model(torch.randn(4, 23)).square().sum().backward()
        optimizer.step()
        if step == 0:
            average.update_parameters(model)
    with pytest.raises(ValueError, match="differs in the models that were to be averaged"):
        average.update_parameters(model)
    with pytest.raises(ValueError, match="the mask of one has moved since they were alike"):
        cw.copy_masks(model, average.module)
    cw.copy_masks(model, copy.deepcopy(model))


def test_an_attention_is_packed_and_baked_shut():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0), 2, enable_nested_tensor=False
    ).eval()
    dense = copy.deepcopy(model)
    cw.sparsify(model, "block:4", density=0.4, storage="compressed")
    cw.sparsify(dense, "block:4", density=0.4)
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(model(x), dense(x))
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x))
    cw.bake(model)
    assert isinstance(model.layers[0].self_attn, nn.MultiheadAttention)
    torch.testing.assert_close(model(x), dense(x))
