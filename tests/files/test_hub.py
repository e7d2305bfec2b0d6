"""Models in folders and on the hub keep their masks and their storage, and the hub is only asked for what it has."""

import json

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.compressed import CompressedLinear


def build(width=64, classes=10):
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))


CONFIG = {"width": 32, "classes": 4}


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = build(**CONFIG)
    cw.sparsify(model, {"0": "block:8"}, density=0.25, storage="compressed")
    return model.eval()


def test_a_folder_holds_all_of_a_sparse_model(model, tmp_path):
    cw.save_pretrained(model, tmp_path / "model", config=CONFIG)
    again = cw.from_pretrained(tmp_path / "model", build)
    x = torch.randn(3, 32)
    assert torch.equal(again(x), model(x)) and not again.training
    assert type(again[0]) is CompressedLinear
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["library_name"], config["config"]) == ("cutwork", CONFIG)
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: cutwork\n") and "| `0` | fixed block:8 at density 0.25" in card


def test_a_card_that_somebody_wrote_stays(model, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    cw.save_pretrained(model, tmp_path, config=CONFIG)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_model_without_memory_is_filled(model, tmp_path):
    cw.save_pretrained(model, tmp_path, config=CONFIG)

    def on_meta(**config):
        with torch.device("meta"):
            return build(**config)

    again = cw.from_pretrained(tmp_path, on_meta, device="cpu")
    x = torch.randn(3, 32)
    assert torch.equal(again(x), model(x))


def test_a_repository_is_made_and_read_again(model, tmp_path, monkeypatch):
    """The hub is a folder here; of its interface this takes what ours calls."""

    class Hub:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repository, private, exist_ok):
            assert (private, exist_ok) == (True, True)
            (tmp_path / repository).mkdir(parents=True)

        def upload_folder(self, repo_id, folder_path, commit_message):
            for file in ("model.safetensors", "config.json", "README.md"):
                (tmp_path / repo_id / file).write_bytes((tmp_path.__class__(folder_path) / file).read_bytes())
            return f"https://hub/{repo_id}/commit/1"

    def download(repository, revision, allow_patterns):
        assert allow_patterns == ["model.safetensors", "config.json"]
        return str(tmp_path / repository)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    address = cw.push_to_hub(model, "me/net", config=CONFIG, private=True, token="secret")
    assert address == "https://hub/me/net/commit/1"
    x = torch.randn(3, 32)
    assert torch.equal(cw.from_pretrained("me/net", build)(x), model(x))


def test_without_a_network_it_is_said_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("cannot reach the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ConnectionError, match="cannot reach the hub; download it elsewhere and give the folder"):
        cw.from_pretrained("me/net", build)


def test_what_is_no_saved_model_is_refused(model, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="there is no folder nothing; a repository of the hub is written OWNER/"
    ):
        cw.from_pretrained("nothing", build)
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        cw.from_pretrained(tmp_path, build)
    cw.save_pretrained(model, tmp_path, config=CONFIG)
    with pytest.raises(TypeError, match="build is a class or a function"):
        cw.from_pretrained(tmp_path, model)
    for text in ("{", "[]", '{"config": 3}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            cw.from_pretrained(tmp_path, build)
    with pytest.raises(ValueError, match="config must be JSON"):
        cw.save_pretrained(model, tmp_path / "new", config={"kind": nn.Linear})
    assert not (tmp_path / "new").exists()
