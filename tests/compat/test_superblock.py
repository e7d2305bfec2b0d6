"""SuperBlock's weights compute here what they compute there: masked online, folded in, and packed.

What they compute there is written down here once more, from its description: of the scores of tiles those no less than
the one of a rank are kept, and attentions read the weight of their output projection without its mask.
"""

import argparse
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

import cutwork as cw
from cutwork.compat import pruned, superblock
from cutwork.sparsity.learned import Learned

TILE, LEVEL = 16, 0.8


def vit():
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=128, num_classes=10
    )


def give_scores(model, tile=TILE, kinds=nn.Linear, transform=False):
    """Return a state dict as their program saves it."""
    state = dict(model.state_dict())
    for name, layer in model.named_modules():
        if isinstance(layer, kinds):
            grid = [max(1, math.ceil(size / tile)) for size in layer.weight.shape]
            state[f"{name}.scores"] = torch.randn(grid)
            state[f"{name}.shift"] = torch.tensor([0.1 if transform else 0.0])
            state[f"{name}.scale"] = torch.tensor([2.0 if transform else 1.0])
    return state


def effective(weight, scores, level, tile):
    """Return the weight as their layer multiplies with it."""
    level = min(level, 1 - 1 / scores.numel())
    rank = 1 + round(0.01 * float(100 * level) * (scores.numel() - 1))
    mask = (scores >= scores.flatten().sort().values[rank - 1]).float()
    for dimension, size in enumerate(weight.shape):
        mask = mask.repeat_interleave(tile, dimension).narrow(dimension, 0, size)
    return weight * mask


def as_there(model, state, level=LEVEL, tile=TILE):
    """Return a dense model that computes what theirs does with a state dict."""
    plain = {key: held for key, held in state.items() if not key.endswith((".scores", ".shift", ".scale"))}
    for name in [key.removesuffix(".scores") for key in state if key.endswith(".scores")]:
        if not name.endswith("out_proj"):
            weight = state[f"{name}.weight"] * state[f"{name}.scale"] + state[f"{name}.shift"]
            plain[f"{name}.weight"] = effective(weight, state[f"{name}.scores"], level, tile)
    model.load_state_dict(plain)
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def state():
    torch.manual_seed(0)
    model = vit()
    # As published it begins with zeros, so all classes would be the same.
    nn.init.normal_(model.heads.head.weight)
    return give_scores(model)


def test_all_three_forms_tell_the_same_classes(state, images, tmp_path):
    torch.save({"model": state, "epoch": 299}, tmp_path / "sp0.80-ts16.pth")
    expected = as_there(vit(), state)(images)

    online = vit().eval()
    sparsifier = superblock.resume(tmp_path / "sp0.80-ts16.pth", online)
    assert all(isinstance(layer.sparsity, Learned) for layer in sparsifier.layers.values())
    torch.testing.assert_close(online(images), expected)

    brought = superblock.read(tmp_path / "sp0.80-ts16.pth")
    folded = vit().eval()
    folded.load_state_dict(brought.weights)
    torch.testing.assert_close(folded(images), expected)
    cw.sparsify(folded, brought.patterns, masks=brought.masks)
    torch.testing.assert_close(folded(images), expected)

    cw.pack(folded, images, forms="tiles")
    assert folded.encoder.layers[0].mlp[0].values.shape[1:] == (TILE, TILE)
    packed = folded(images)
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(packed.argmax(1), expected.argmax(1))
    assert len(expected.argmax(1).unique()) > 1


def test_scores_go_on_learning_from_where_they_were(state, images):
    model = vit()
    sparsifier = superblock.resume(state, model, sparsity=LEVEL)
    for name, layer in sparsifier.layers.items():
        assert torch.equal(layer.sparsity.scores, state[f"{name}.scores"])
    before = {name: layer.sparsity.mask.clone() for name, layer in sparsifier.layers.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier.attach(optimizer)
    model(images).square().sum().backward()
    assert all(layer.sparsity.scores.grad.any() for layer in sparsifier.layers.values())
    optimizer.step()
    # Without a change of scores the method chooses what their program keeps.
    assert all(torch.equal(layer.sparsity.mask, before[name]) for name, layer in sparsifier.layers.items())


def test_masks_that_attentions_never_read_stay_out(state):
    brought = superblock.read(state, sparsity=LEVEL)
    assert [*brought.left_out] == [f"encoder.layers.encoder_layer_{at}.self_attention.out_proj" for at in range(2)]
    assert not any("out_proj" in name for name in brought.masks)
    assert brought.patterns["heads.head"] == "block:16"


def test_weights_are_scaled_and_shifted(images):
    torch.manual_seed(1)
    state = give_scores(vit(), transform=True)
    model = vit().eval()
    model.load_state_dict(superblock.read(state, sparsity=LEVEL).weights)
    torch.testing.assert_close(model(images), as_there(vit(), state)(images))


def test_convolutions_are_masked_in_tiles_of_channels():
    def build():
        return nn.Sequential(nn.Conv2d(8, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.Flatten(), nn.Linear(32, 8))

    torch.manual_seed(2)
    state = give_scores(build(), tile=8, kinds=(nn.Conv2d, nn.Linear))
    brought = superblock.read(state, sparsity={"*": 0.5, "0": 0.7})
    assert brought.patterns == {"*": "dense", "0": "block:8-taps", "2": "block:8", "4": "block:8"}
    model = build()
    model.load_state_dict(brought.weights)
    expected = as_there(
        build(),
        {key: held for key, held in state.items() if key[0] != "0"}
        | {"0.weight": effective(state["0.weight"], state["0.scores"], 0.7, 8), "0.bias": state["0.bias"]},
        0.5,
        8,
    )
    x = torch.randn(4, 8, 3, 3)
    torch.testing.assert_close(model(x), expected(x))
    online = build()
    superblock.resume(state, online, sparsity={"*": 0.5, "0": 0.7})
    torch.testing.assert_close(online(x), expected(x))


def test_single_weights_are_read_too():
    state = give_scores(nn.Sequential(nn.Linear(8, 8), nn.Conv2d(4, 4, 3)), tile=1, kinds=(nn.Linear, nn.Conv2d))
    brought = superblock.read(state, sparsity=0.75)
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(4, 4, 3))
    sparsifier = superblock.resume(state, model, sparsity=0.75)
    for name, layer in sparsifier.layers.items():
        assert layer.sparsity.pattern == cw.parse("unstructured")
        assert torch.equal(layer.sparsity.mask, brought.masks[name])


def test_the_level_is_that_of_the_training_where_the_file_has_its_options(state, tmp_path):
    options = argparse.Namespace(sparsity_linear=LEVEL, sparsity_conv=0.0, sparsity_conv1x1=0.0)
    torch.save({"model": state, "args": options}, tmp_path / "model_299.pth")
    brought = superblock.read(tmp_path / "model_299.pth")
    assert torch.equal(brought.masks["heads.head"], superblock.read(state, sparsity=LEVEL).masks["heads.head"])
    # So the general reader reads it too, and the command checks it.
    assert pruned.read(tmp_path / "model_299.pth").origin == "SuperBlock"
    assert "block:16" in str(cw.check(tmp_path / "model_299.pth"))


def test_torchao_left_shift_and_scale_out(state):
    lean = {key: held for key, held in state.items() if not key.endswith((".shift", ".scale"))}
    one, other = (superblock.read(each, sparsity=LEVEL) for each in (state, lean))
    assert all(torch.equal(one.weights[key], other.weights[key]) for key in other.weights)


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        ({}, {}, r"its file does not say how sparse it is; give sparsity=0\.9"),
        ({}, {"sparsity": 1.5}, r"sparsity=1\.5 is outside \(0, 1\)"),
        ({}, {"sparsity": 0.8, "tile": 32}, "with tiles of 32; they would with tiles of 16"),
        ({"heads.head.scores": torch.rand(5, 5, 5)}, {"sparsity": 0.8}, "do not fit a weight"),
        ({"heads.head.scores": torch.rand(10, 64)}, {"sparsity": 0.8}, "no one size of tiles fits all layers"),
        ({"other.scores": torch.rand(2, 2)}, {"sparsity": 0.8}, "other has scores, but no weight"),
    ],
)
def test_what_does_not_fit_is_refused(change, given, message, state):
    with pytest.raises(ValueError, match=message):
        superblock.read(state | change, **given)


def test_what_is_no_superblock_is_refused():
    with pytest.raises(ValueError, match=r"no layer of it has scores.*cutwork\.compat\.pruned"):
        superblock.read(nn.Linear(2, 2).state_dict(), sparsity=0.5)
    with pytest.raises(ValueError, match="tiles of 2 cut its kernel of 3x3 apart"):
        superblock.read(give_scores(nn.Sequential(nn.Conv2d(4, 4, 3)), tile=2, kinds=nn.Conv2d), sparsity=0.5)


def test_a_published_file_is_fetched_by_level_and_tile(state, tmp_path, monkeypatch):
    asked = []

    def hub(repository, name):
        asked.append((repository, name))
        file = tmp_path / Path(name).name
        torch.save({"model": state}, file)
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub)
    file = superblock.fetch(sparsity=0.9, tile=16)
    assert asked == [("facebook/superblock-vit-b-16", "checkpoints/sp0.90-ts16.pth")]
    assert len(superblock.read(file).masks) == 5
    with pytest.raises(ValueError, match=r"no weights of sparsity 0\.5 in tiles of 16; choose one of 0\.7, 0\.8"):
        superblock.fetch(sparsity=0.5, tile=16)


def test_a_damaged_download_and_no_network_are_said(tmp_path, monkeypatch):
    blob = tmp_path / ("0" * 64)
    blob.write_bytes(b"something else")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_: str(blob))
    with pytest.raises(ValueError, match="is damaged: its SHA-256 is"):
        superblock.fetch(sparsity=0.7, tile=64)

    def offline(*_):
        raise OSError("cannot reach the hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(
        ConnectionError, match=r"cannot reach the hub; download it elsewhere.*read\('sp0.70-ts64.pth'\)"
    ):
        superblock.fetch(sparsity=0.7, tile=64)
