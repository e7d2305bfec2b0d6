"""The command that says what the zeros of a model are good for."""

import json

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.cli import main as cli

TRAIN = ["train", "--model", "mlp:hidden=(64,64)", "--data", "digits", "--batch", "128", "--epochs", "1"]


@pytest.fixture
def pruned(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 10))
    cw.sparsify(model, {"0": "2:4"})
    cw.bake(model)
    torch.save(model.state_dict(), tmp_path / "pruned.pth")
    return str(tmp_path / "pruned.pth")


def test_a_file_is_checked(pruned, capsys):
    assert cli.main(["check", pruned]) == 0
    assert "2:4 along inputs in 1 of 2 weights, density 0.5: not faster on this CPU" in capsys.readouterr().out
    assert cli.main(["check", pruned, "--json", "--time", "--seconds", "0.01"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"][0]["zeros"]["axis"] == "inputs"


def test_a_run_is_checked_by_its_best_model(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert cli.main([*TRAIN, "--pattern", "block:16", "--density", "0.25", "--output", folder]) == 0
    capsys.readouterr()
    assert cli.main(["check", folder]) == 0
    assert "best.safetensors: 1 weight, zeros told by the masks of cutwork" in capsys.readouterr().out
    assert cli.main(["check", folder, "--time", "--seconds", "0.01"]) == 0
    assert "x64" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mlp", "gpt:num_blocks=1", "torchvision:squeezenet1_1"])
def test_a_model_is_checked_by_its_name(name, capsys):
    assert cli.main(["check", name]) == 0
    assert "nothing here is pruned" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.pth", "there is no file or folder missing.pth"),
        ("reset18", "did you mean 'resnet18'?"),
        ("short.pth", "is no complete file of PyTorch"),
        ("pruned.pth --time --tokens 0", "tokens=(0,); give at least one number of tokens"),
        ("list.pth", "no state dict but a list"),
        ("empty", "has no model.safetensors or"),
    ],
)
def test_what_cannot_be_checked_is_one_line_and_exit_code_2(name, message, pruned, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.pth").write_bytes((tmp_path / "pruned.pth").read_bytes()[:999])
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "empty").mkdir()
    assert cli.main(["check", *name.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
