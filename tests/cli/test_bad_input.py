"""Damaged files, full disks, closed folders and typing mistakes: one line, exit code 2, and nothing lost."""

import os
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cutwork.cli import main as cli
from cutwork.lab.run_folder import RunFolder

TINY = ["--model", "mlp:hidden=(64,64,64)", "--data", "digits", "--batch", "512", "--epochs", "4"]
SPARSE = ["--pattern", "block:16", "--density", "0.25"]


@pytest.fixture
def run(tmp_path, capsys) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    assert cli.main(["train", *TINY, *SPARSE, "--output", str(folder.path)]) == 0
    capsys.readouterr()
    return folder


def fails(capsys, *given: object) -> str:
    """Return the one line that a command ends with."""
    assert cli.main([*map(str, given)]) == 2
    shown = capsys.readouterr().err.splitlines()
    told = [line for line in shown if not line.startswith("step ")]
    assert len(told) == 1, shown
    assert told[0].startswith("cutwork: ")
    return told[0]


@pytest.mark.parametrize("damage", ["cut off", "one byte", "no checkpoint"])
def test_a_damaged_checkpoint_is_named_by_every_command(damage, run, tmp_path, capsys):
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    for file in (run.best, run.last):
        content = bytearray(file.read_bytes())
        content[-40] ^= 1
        file.write_bytes({"cut off": content[:-100], "one byte": content, "no checkpoint": b"hello"}[damage])
    out = tmp_path / "packed.safetensors"
    for given in (["evaluate", run.path], ["plan", run.best], ["pack", run.path, "--output", out]):
        assert "best.safetensors" in fails(capsys, *given)
    assert not out.exists()
    run.summary.unlink()
    assert "last.safetensors" in fails(capsys, "train", "--resume", run.path)
    for file in (run.curves, run.config, run.command):
        assert file.read_bytes() == before[file]


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on the size of files stands for a full disk")
def test_a_disk_that_is_full_ends_a_run_which_then_goes_on(tmp_path, capsys):
    import resource  # Windows has none.

    given = ["train", *TINY, *SPARSE, "--output", tmp_path / "run", "--or-resume"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Less than a checkpoint.
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))
        told = fails(capsys, *given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "best.safetensors" in told and "the checkpoint was not saved" in told
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    assert cli.main([*map(str, given)]) == 0
    assert cli.main(["train", *TINY, *SPARSE, "--output", str(tmp_path / "whole")]) == 0
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("run", "whole"))
    assert all((one[name] == other[name]).all() for name in one)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_curves_that_cannot_be_written_are_named(run, capsys):
    run.summary.unlink()
    last = run.last.read_bytes()
    run.curves.unlink()
    run.table.unlink()
    run.table.symlink_to("/dev/full")
    told = fails(capsys, "train", "--resume", run.path)
    assert "No space left on device" in told and "curves.csv" in told and "go on by --resume" in told
    assert run.last.read_bytes() == last


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    def never(*args, **options):
        raise AssertionError("data were loaded")

    monkeypatch.setattr("cutwork.lab.loop.open_feed", never)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    told = fails(capsys, "train", *TINY, "--output", tmp_path / "some" / "run")
    assert f"{tmp_path} cannot be written to; name another folder for the run" in told
    monkeypatch.setattr("cutwork.lab.packing.find_subject", never)
    told = fails(capsys, "pack", tmp_path, "--output", tmp_path / "packed")
    assert f"{tmp_path} cannot be written to; name a file in another folder" in told
    (tmp_path / "file").write_text("mine")
    assert "file is no folder" in fails(capsys, "train", *TINY, "--output", tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="only Linux has a folder that even root may not write to")
def test_a_file_system_that_nobody_may_write_to_is_one_line(run, capsys):
    assert "/sys/kernel" in fails(capsys, "train", *TINY, "--output", "/sys/kernel/run")
    assert "/sys/kernel" in fails(capsys, "pack", run.path, "--output", "/sys/kernel/packed", "--seconds", "0.001")


@pytest.mark.parametrize(
    ("given", "near"),
    [
        (["train", "small-rgl"], "small-rigl"),
        (["train", "small-rigl", "--denity", "0.1"], "--density"),
        (["train", "small-rigl", "--shedule", "cosine"], "--schedule"),
        (["train", "small-rigl", "--schedule", "cosin"], "cosine"),
        (["evaluate", "run", "--paked"], "--packed"),
        (["plan", "resnet18", "--patern", "2:4"], "--pattern"),
        (["pack", "run", "--outptu", "file"], "--output"),
        (["pln", "resnet18"], "plan"),
    ],
)
def test_a_typing_mistake_is_exit_code_2_and_names_what_is_near(given, near, capsys):
    try:
        code = cli.main(given)
    except SystemExit as error:
        code = error.code
    assert code == 2
    shown = capsys.readouterr().err
    assert near in shown
    assert "Traceback" not in shown


def test_a_configuration_that_was_changed_by_hand_is_named(run, capsys):
    text = run.config.read_text()
    for old, new, message in (
        ('"lr":', '"lrr":', "there is no option 'optimizing.lrr'"),
        ('"cosine"', '"cosin"', "unknown schedule 'cosin'"),
        ("{", "", "config.json"),
    ):
        run.config.write_text(text.replace(old, new, 1))
        told = fails(capsys, "evaluate", run.path)
        assert "config.json" in told and message in told
