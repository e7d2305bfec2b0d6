"""ONNX files of sparse models have their zeros, keep n:m, and compute what the model does."""

import shutil

import onnx
import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.files import onnx_file
from cutwork.layers.swap import sparse_layers


def build():
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 64), nn.Linear(64, 16)]
    return nn.Sequential(*layers).eval()


IMAGES = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def packed():
    model = build()
    cw.sparsify(model, {"0": "vector:8", "4": "2:4", "5": "block:16"}, density={"[05]": 0.25}, init="magnitude")
    cw.pack(model, IMAGES, forms="tiles")
    return model


@pytest.fixture(scope="module")
def file(packed, tmp_path_factory):
    return cw.to_onnx(packed, tmp_path_factory.mktemp("onnx") / "model.onnx", IMAGES, dynamic_batch=True)


def test_a_packed_model_is_written_whole_with_its_zeros(packed, file):
    assert {name: str(each) for name, each in file.zeros.items()} == {
        "0.weight": "vector:8",
        "4.weight": "2:4 along inputs",
        "5.weight": "block:16",
    }
    assert file.error < 1e-5
    assert "2:4 along inputs" in str(file)
    assert [path.name for path in file.path.parent.iterdir()] == ["model.onnx"]
    # The model is packed as before, and the file has the weights that it computes with.
    assert packed[5].values.shape == (1, 16, 16)
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(file.path).graph.initializer}
    assert torch.equal(torch.tensor(weights["5.weight"]) != 0, packed[5].sparsity.mask)


def test_what_differs_leaves_no_file_and_the_old_one_stays(packed, file, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_text("the old one")
    monkeypatch.setattr(onnx_file, "_export", lambda model, call, to, **_: shutil.copy(file.path, to))
    monkeypatch.setattr(onnx_file, "_difference", lambda *_: 0.5)
    with pytest.raises(ValueError, match=r"returns something else than the model, by 0\.5"):
        cw.to_onnx(packed, path, IMAGES)
    assert path.read_text() == "the old one" and len([*tmp_path.iterdir()]) == 1
    monkeypatch.undo()
    # Another example takes another number of tensors.
    with pytest.raises(ValueError, match="the file takes 1 tensors, input, where 2 were given"):
        onnx_file._compare(onnx_file._package("onnxruntime"), file.path, packed, onnx_file.Call((IMAGES, IMAGES), {}))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 8)

    def forward(self, x, scale):
        return self.head(self.layer(x)) * scale


def test_weights_that_the_exporter_turns_over_are_found_again(tmp_path):
    torch.manual_seed(0)
    model = Tokens().eval()
    cw.sparsify(model, {"*": "2:4", "head": "block:4"}, density={"head": 0.5}, init="magnitude")
    file = cw.to_onnx(model, tmp_path / "model.onnx", torch.randn(1, 5, 16), {"scale": torch.ones(1)})
    kinds = {name: str(each) for name, each in file.zeros.items()}
    assert kinds["layer.linear1.weight"] == kinds["layer.self_attn.in_proj_weight"] == "2:4 along inputs"
    assert kinds["head.weight"] == "block:4"


def test_zeros_that_are_missing_in_the_file_are_found():
    model = build()
    cw.sparsify(model, {"4": "2:4", "5": "2:4"}, init="magnitude")
    held = {name: (each.sparsity.pattern, each.sparsity.layout) for name, each in sparse_layers(model).items()}
    cw.bake(model)
    written = dict(model.named_parameters())
    assert {*onnx_file._find_weights(model, written)} == {"4.weight", "5.weight"}
    # Turned over under another name it is still the same weight.
    turned = {"val_1": written["4.weight"].T, "5.weight": written["5.weight"]}
    assert torch.equal(onnx_file._find_weights(model, turned)["4.weight"], written["4.weight"])
    with pytest.raises(ValueError, match=r"4\.weight has 8192 zeros, and no weight in the file has them"):
        onnx_file._find_weights(model, {**written, "4.weight": torch.ones(64, 256)})
    with pytest.raises(ValueError, match="4 does not keep 2:4 in the file"):
        onnx_file._check_masks(held, {"4.weight": torch.ones(64, 256)})


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="traced from an example"):
        cw.to_onnx(build(), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"a batch of two or more in every tensor; one is \[1, 4, 6, 6\]"):
        cw.to_onnx(build(), tmp_path / "model.onnx", IMAGES[:1], dynamic_batch=True)
    monkeypatch.setattr(onnx_file.importlib, "import_module", _missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cutwork\[export\]'"):
        cw.to_onnx(build(), tmp_path / "model.onnx", IMAGES)


def _missing(name):
    raise ModuleNotFoundError(name)
