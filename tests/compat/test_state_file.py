"""State dicts are found in files of others, and what is none, or not whole, is refused by name."""

import argparse
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import cutwork as cw
from cutwork.compat.state_file import find_state, read_state


@pytest.fixture
def state():
    return {"fc.weight": torch.arange(4.0).view(2, 2), "fc.bias": torch.ones(2)}


@pytest.mark.parametrize("place", ["state_dict", "model", "net", "model_state_dict"])
def test_a_state_dict_is_found_inside_a_checkpoint(state, place, tmp_path):
    saved = {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        place: {f"module.{key}": held for key, held in state.items()},
    }
    torch.save(saved, tmp_path / "run.pth")
    found, rest = read_state(tmp_path / "run.pth")
    assert {*found} == {*state} and torch.equal(found["fc.weight"], state["fc.weight"])
    assert rest["epoch"] == 3 and rest["args"].lr == 0.1


def test_names_of_wrapped_models_are_those_of_the_model(state):
    wrapped = {f"module._orig_mod.{key}": held for key, held in state.items()}
    assert [*find_state(wrapped)[0]] == [*state]


def test_files_of_every_kind_are_read(state, tmp_path):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.bin")
    torch.save(state, tmp_path / "c.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.bin", "c.pt"):
        assert torch.equal(read_state(tmp_path / name)[0]["fc.weight"], state["fc.weight"]), name


def test_a_folder_of_transformers_is_read_in_all_its_parts(state, tmp_path):
    for name, key in (("one.safetensors", "fc.weight"), ("two.safetensors", "fc.bias")):
        save_file({key: state[key]}, tmp_path / name)
    index = {"weight_map": {"fc.weight": "one.safetensors", "fc.bias": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {*read_state(tmp_path)[0]} == {*state}
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"two\.safetensors"):
        read_state(tmp_path)
    for text in ("{", "[]", '{"weight_map": 3}'):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ValueError, match=r"index\.json does not say which files there are"):
            read_state(tmp_path)


def test_a_checkpoint_of_our_own_is_loaded_otherwise(tmp_path):
    model = nn.Sequential(nn.Linear(16, 16))
    cw.sparsify(model, "block:4", density=0.5)
    cw.save(model, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"is a checkpoint of cutwork; load it with cutwork\.load"):
        read_state(tmp_path / "model.safetensors")


class Unknown:
    pass


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: file.write_bytes(b""), "is empty"),
        (lambda file: file.write_text("hello, world"), "neither a complete safetensors file"),
        (lambda file: torch.save([1, 2], file), "no state dict but a list"),
        (lambda file: torch.save({"epoch": 1}, file), "it holds 'epoch', and no tensors by name"),
        (lambda file: torch.save(torch.ones(2), file), "no state dict but a Tensor"),
        (lambda file: torch.save({"model": Unknown()}, file), "holds more than tensors .*Unknown.*any code"),
        (lambda file: file.write_bytes(pickle.dumps(print, 2)), "holds more than tensors .*print.*any code"),
        (lambda file: file.write_bytes(b"PK\x03\x04 and nothing else"), "is no complete file of PyTorch"),
        (lambda file: file.write_bytes(b"\x80\x02 and nothing else"), "is no complete file of PyTorch"),
    ],
)
def test_what_is_no_state_dict_is_refused(write, message, tmp_path):
    write(tmp_path / "file")
    with pytest.raises(ValueError, match=message) as raised:
        read_state(tmp_path / "file")
    assert str(tmp_path / "file") in str(raised.value)


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_file_cut_short_is_refused(kind, tmp_path):
    file = tmp_path / f"model.{kind}"
    state = {"weight": torch.rand(64, 64)}
    torch.save(state, file) if kind == "pth" else save_file(state, file)
    whole = file.read_bytes()
    for length in (1, 3, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="copy it anew"):
            read_state(file)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.pth"):
        read_state(tmp_path / "missing.pth")
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors or"):
        read_state(tmp_path)
