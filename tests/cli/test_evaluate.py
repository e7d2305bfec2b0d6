"""The command that judges a trained model."""

import json

import pytest

from cutwork.cli import main as cli

TRAIN = ["train", "--model", "mlp:hidden=(64,64,64)", "--data", "digits", "--batch", "128", "--epochs", "2"]
SPARSE = ["--pattern", "block:16", "--density", "0.25", "--storage", "dense"]


@pytest.mark.parametrize("member", [[], ["--member", "parallel", "--between", "linear"]])
def test_a_packed_model_is_as_good_as_it_was_trained(member, tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert cli.main([*TRAIN, *SPARSE, *member, "--output", folder]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", folder, "--packed", "--json"]) == 0
    forms = json.loads(capsys.readouterr().out)
    assert [*forms] == ["as trained", "packed"]
    trained, packed = (forms[name]["judgement"] for name in forms)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert trained["accuracy"] == packed["accuracy"] == summary["best_accuracy"]
    assert trained["loss"] == pytest.approx(packed["loss"], rel=1e-4)
    assert trained["count"] == 360
    assert cli.main(["evaluate", folder, "--packed", "--checkpoint", "last", "--batch", "64"]) == 0
    shown = capsys.readouterr().out
    assert "as trained" in shown and "fc2" in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [([], "holds no run"), (["--packed"], "has no sparse layer, so there is nothing to pack")],
)
def test_what_cannot_be_judged_is_said(given, message, tmp_path, capsys):
    folder = tmp_path / "run"
    if given:
        assert cli.main([*TRAIN, "--output", str(folder)]) == 0
        capsys.readouterr()
    assert cli.main(["evaluate", str(folder), *given]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_has_no_model_yet_says_so(tmp_path, capsys):
    assert cli.main([*TRAIN, "--output", str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "best.safetensors").unlink()
    capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "run")]) == 2
    assert "has no best.safetensors yet" in capsys.readouterr().err
