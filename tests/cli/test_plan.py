"""The command that plans: runs, checkpoints, recipes and names, and what it says when something is wrong."""

import json

import pytest

from cutwork.cli import main as cli

MODEL = "mlp:hidden=(64,64,64)"
TRAIN = ["train", "--model", MODEL, "--data", "digits", "--batch", "256", "--epochs", "1"]
QUICK = ["--seconds", "0.001"]
FAKE = ["--data", "fake:1x8x8:10"]


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rows_of(capsys, *given: str) -> list[dict]:
    assert cli.main(["plan", *given, *QUICK, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["rows"]


def test_a_model_is_planned_by_its_name(capsys):
    rows = rows_of(capsys, MODEL, *FAKE, "--pattern", "block:8", "--density", "0.25", "--batch", "3")
    assert [row["layer"] for row in rows] == ["fc2", "fc3"]
    assert {row["pattern"] for row in rows} == {"block:8"}
    assert all(abs(row["density"] - 0.25) < 0.02 for row in rows)
    assert all(row["input"] == [3, 64] and row["seconds"].keys() == {"dense", "tiles"} for row in rows)
    # Without words of one's own a tenth is kept, in blocks of 16.
    assert {row["pattern"] for row in rows_of(capsys, MODEL, *FAKE)} == {"block:16"}


def test_a_run_and_its_checkpoint_are_planned_as_they_were_trained(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert cli.main([*TRAIN, "--pattern", "vector:8", "--density", "0.5", "--output", folder]) == 0
    capsys.readouterr()
    for subject in (folder, f"{folder}/best.safetensors", f"{folder}/last.safetensors"):
        assert {row["pattern"] for row in rows_of(capsys, subject)} == {"vector:8"}
    assert cli.main(["plan", folder, *QUICK]) == 0
    table = capsys.readouterr().out
    assert "reason" in table and "fc3" in table
    assert cli.main(["plan", folder, "--density", "0.1"]) == 2
    assert "was trained already, and density is as it was then" in capsys.readouterr().err
    assert cli.main(["plan", folder, "--speedup", "2"]) == 2
    assert "pattern is as it was then" in capsys.readouterr().err


def test_a_recipe_is_planned_as_it_would_be_trained(capsys):
    # Its data set need not be there.
    rows = rows_of(
        capsys, "small-rigl", "--data", "fake:1x8x8:10", "--density", "0.2", "--layers", "blocks.5.conv2,blocks.4.conv2"
    )
    assert {row["layer"]: row["pattern"] for row in rows} == {
        "blocks.4.conv2": "block:16",
        "blocks.5.conv2": "block:16",
    }


def test_patterns_and_densities_are_proposed(capsys):
    given = [MODEL, *FAKE, "--speedup", "1.01", "--pattern", "block:8", "--density", "0.1", "--batch", "8"]
    assert cli.main(["plan", *given, *QUICK, "--json"]) == 0
    proposal = json.loads(capsys.readouterr().out)
    assert proposal["speedups"].keys() == {"block:8"}
    assert {row["layer"] for row in proposal["rows"]} <= {"fc2", "fc3"}
    assert cli.main(["plan", *given, *QUICK]) == 0
    assert "block:8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["small-rgl"], "there is no run, no recipe and no model 'small-rgl' (did you mean 'small-rigl'?)"),
        (["resnt18"], "no model 'resnt18' (did you mean 'resnet18'?)"),
        (["runs/first"], "there is no runs/first; give the folder of a run, or a checkpoint in it"),
        (["best.safetensors"], "there is no best.safetensors"),
        ([MODEL, *FAKE, "--pattern", "blok:8"], "blok:8"),
        ([MODEL, *FAKE, "--pattern", "dense"], "has no sparse layer; name a pattern"),
        ([MODEL, *FAKE, "--density", "2"], "2"),
        ([MODEL, *FAKE, "--layers", "fc7"], "no layer is meant by 'fc7'"),
        ([MODEL, "--data", "digts"], "unknown data set 'digts' (did you mean 'digits'?)"),
        ([MODEL, *FAKE, "--speedup", "0.5"], "speedup=0.5; give a number above 1"),
        ([MODEL, *FAKE, "--speedup", "2", "--training"], "a speedup is predicted for inference"),
        ([MODEL, *FAKE, "--seconds", "0"], "seconds=0"),
        ([MODEL, *FAKE, "--batch", "0"], "batch=0"),
        ([MODEL, *FAKE, "--device", "cda"], "unknown device 'cda'"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", *given]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_folder_without_a_run_and_a_file_without_a_model_are_named(tmp_path, capsys):
    assert cli.main(["plan", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "model.safetensors").write_bytes(b"no checkpoint")
    assert cli.main(["plan", str(tmp_path / "model.safetensors")]) == 2
    assert "is no complete safetensors file" in capsys.readouterr().err
