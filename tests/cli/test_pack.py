"""The command that packs: what it writes is opened again and computes the same, and nothing is written over or lost."""

import json

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.cli import main as cli
from cutwork.lab import packing
from cutwork.models.zoo import make_mlp

TRAIN = ["train", "--model", "mlp:hidden=(64,64,64)", "--data", "digits", "--batch", "128", "--epochs", "1"]
SPARSE = ["--pattern", "block:16", "--density", "0.25"]
QUICK = ["--seconds", "0.001"]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(packing, "SECONDS", 0.01)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def trained(folder, capsys, *given: str) -> str:
    assert cli.main([*TRAIN, *(given or SPARSE), "--output", str(folder)]) == 0
    capsys.readouterr()
    return str(folder)


def judged(what, capsys) -> dict:
    assert cli.main(["evaluate", str(what), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["as trained"]["judgement"]


@pytest.mark.parametrize(
    "given",
    [
        [*SPARSE, "--storage", "dense"],
        [*SPARSE, "--member", "parallel", "--between", "linear"],
        [*SPARSE, "--method", "supermask"],
    ],
    ids=["dense storage", "branches", "learned masks"],
)
def test_a_packed_model_is_opened_again_and_is_as_good(given, tmp_path, capsys):
    folder = trained(tmp_path / "run", capsys, *given)
    packed = tmp_path / "packed.safetensors"
    assert cli.main(["pack", folder, "--output", str(packed), *QUICK, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["packed_bytes"] == packed.stat().st_size < told["dense_bytes"]
    assert told["difference"] < 1e-4
    assert told["times"].keys() == {"dense", "as trained", "packed"}
    as_trained, again = judged(folder, capsys), judged(packed, capsys)
    assert again["accuracy"] == as_trained["accuracy"]
    assert again["loss"] == pytest.approx(as_trained["loss"], rel=1e-4)
    assert {record.kind for record in cw.describe(packed).layers.values()} == {"fixed"}
    # Branches have become one layer.
    assert bool(told["folded"]) == ("--member" in given)


def test_the_library_opens_what_was_packed(tmp_path, capsys):
    folder = trained(tmp_path / "run", capsys)
    packed = tmp_path / "packed.safetensors"
    assert cli.main(["pack", f"{folder}/last.safetensors", "--output", str(packed), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("fc3", "MiB dense", "outputs differ by", "as trained", "packed"))
    model = make_mlp(64, hidden=(64, 64, 64))
    assert set(cw.load(packed, model).layers) == {"fc2", "fc3"}
    x = torch.randn(5, 64)
    expected = make_mlp(64, hidden=(64, 64, 64))
    cw.load(f"{folder}/last.safetensors", expected)
    torch.testing.assert_close(model.eval()(x), expected.eval()(x))
    # What was packed may be packed again.
    assert cli.main(["pack", str(packed), "--output", str(tmp_path / "again.safetensors"), *QUICK]) == 0


def test_fewer_bits_may_be_asked_for(tmp_path, capsys):
    folder = trained(tmp_path / "run", capsys)
    packed = str(tmp_path / "packed.safetensors")
    assert cli.main(["pack", folder, "--output", packed, "--precisions", "bf16", *QUICK]) == 0
    assert "outputs differ by" in capsys.readouterr().out


def test_what_would_compute_something_else_is_not_written(tmp_path, capsys, monkeypatch):
    folder = trained(tmp_path / "run", capsys)

    def spoil(model: nn.Module, *args, **options):
        with torch.no_grad():
            model.get_parameter("head.bias").add_(1)
        return cw.plan(model, forms="dense")

    monkeypatch.setattr(packing, "pack", spoil)
    assert cli.main(["pack", folder, "--output", str(tmp_path / "packed.safetensors")]) == 2
    assert "outputs differ by" in capsys.readouterr().err
    assert not (tmp_path / "packed.safetensors").exists()


def test_what_cannot_be_packed_is_said(tmp_path, capsys):
    dense = trained(tmp_path / "dense", capsys, "--pattern", "dense")
    plain = tmp_path / "plain.safetensors"
    cw.save(nn.Linear(3, 3), plain)
    (tmp_path / "there").write_text("mine")
    out = str(tmp_path / "packed.safetensors")
    for given, message in (
        ([dense, "--output", out], "has no sparse layer, so there is nothing to pack"),
        ([str(plain), "--output", out], "does not say which model it is of"),
        (["nowhere", "--output", out], "there is no nowhere; give the folder of a run"),
        ([dense, "--output", str(tmp_path / "there")], "there is there already; name another file"),
        ([dense, "--output", str(tmp_path / "no" / "packed")], "there is no folder"),
        ([str(tmp_path), "--output", out], "holds no run"),
    ):
        assert cli.main(["pack", *given]) == 2
        shown = capsys.readouterr().err
        assert message in shown
        assert shown.count("\n") == 1
    assert (tmp_path / "there").read_text() == "mine"
