"""The command that trains: recipes, options, folders, and what it says when something is wrong."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from cutwork.cli import main as cli
from cutwork.data import DATA_SETS, FEEDS
from cutwork.lab.loop import Stopped
from cutwork.lab.recipes import RECIPES
from cutwork.lab.run_folder import RunFolder

TINY = ["--model", "mlp:hidden=(16,16)", "--data", "digits", "--batch", "512", "--epochs", "1", "--log-every", "1"]


def test_a_recipe_s_values_are_those_that_no_option_changes(tmp_path, capsys):
    assert (
        cli.main(["train", "small-static", "--tiny", *TINY, "--density", "0.5", "--output", str(tmp_path / "run")]) == 0
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["sparse"]["density"], config["sparse"]["pattern"]) == (0.5, "block:8")
    assert (config["running"]["batch"], config["optimizing"]["lr_power"]) == (512, 0.5)
    shown = capsys.readouterr()
    assert "of the test data are right" in shown.out
    assert "step 1/2: loss " in shown.err
    assert "step 2/2: test accuracy " in shown.err


def test_help_has_the_options_with_the_recipe_s_values():
    done = subprocess.run(
        [sys.executable, "-m", "cutwork", "train", "dsb-wrn-22-2-cifar10", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    text = " ".join(done.stdout.replace("│", " ").split())
    for part in ("--density", "(default: 0.1)", "(default: shuffled:16)", "--resume", "--warmup-from", "--lr-power"):
        assert part in text


def test_a_run_goes_on_by_its_folder_alone(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert cli.main(["train", *TINY, "--output", folder]) == 0
    summary = (tmp_path / "run" / "summary.json").read_text()
    capsys.readouterr()
    assert cli.main(["train", "--resume", folder]) == 0
    assert (tmp_path / "run" / "summary.json").read_text() == summary
    assert cli.main(["train", "small-dense", "--resume", folder]) == 2
    assert "goes on as the run was begun; give no recipe" in capsys.readouterr().err


def test_a_command_that_is_given_again_goes_on(tmp_path, capsys):
    given = ["train", *TINY, "--output", str(tmp_path / "run"), "--or-resume"]
    assert cli.main([*given, "--steps", "1"]) == 0
    summary = (tmp_path / "run" / "summary.json").read_text()
    assert cli.main([*given, "--steps", "1"]) == 0
    assert (tmp_path / "run" / "summary.json").read_text() == summary
    capsys.readouterr()
    assert cli.main([*given, "--steps", "2"]) == 2
    assert "was begun with other options; --resume" in capsys.readouterr().err
    assert cli.main(["train", *TINY, "--or-resume"]) == 2
    assert "name it by --output" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_processes_that_are_killed_are_started_again_and_end_as_others_do(tmp_path):
    sparse = ["--pattern", "block:8", "--density", "0.5", "--method", "rigl", "--every", "5"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    runs = {}
    for name in ("whole", "killed"):
        folder = RunFolder(tmp_path / name)
        given = ["train", *TINY, *sparse, "--epochs", "30", "--batch", "128", "--output", str(folder.path)]
        command = [sys.executable, *torchrun, "-m", "cutwork", *given, "--or-resume"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if name == "killed":
            while process.poll() is None and not any(each["step"] == 40 for each in folder.read_curves()):
                time.sleep(0.005)
            children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            os.kill(int(children[-1]), signal.SIGKILL)
        assert process.wait(timeout=200) == 0
        runs[name] = load_file(folder.last)
    assert all(torch.equal(runs["whole"][name], runs["killed"][name]) for name in runs["whole"])


def test_a_run_that_was_stopped_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stop(*args, **options):
        raise Stopped("stopped after step 3 of 9; to go on: cutwork train --resume run")

    monkeypatch.setattr("cutwork.lab.loop.train", stop)
    with pytest.raises(SystemExit) as error:
        cli.main(["train", *TINY, "--output", str(tmp_path / "run")])
    assert error.value.code == 130
    assert capsys.readouterr().err == "cutwork: stopped after step 3 of 9; to go on: cutwork train --resume run\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["train", "small-rgl"], "there is no recipe 'small-rgl' (did you mean 'small-rigl'?)"),
        (["train", *TINY, "--data", "digts"], "unknown data set 'digts' (did you mean 'digits'?)"),
        (["train", *TINY, "--model", "resnt18"], "unknown model 'resnt18'"),
        (["train", *TINY, "--pattern", "blok:8"], "blok:8"),
        (["train", "--resume", "/nowhere/at/all"], "there is no run to go on with in /nowhere/at/all"),
        (["ls", "recepies"], "there are no 'recepies' to list (did you mean 'recipes'?)"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(given) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["train", *TINY, "--output", str(tmp_path / "file" / "run")]) == 2
    assert "file" in capsys.readouterr().err


def test_a_terminal_shows_a_bar_and_a_line_for_each_epoch(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(["train", *TINY, "--output", str(tmp_path / "run")]) == 0
    assert "test accuracy" in capsys.readouterr().err


def test_lists_name_all_recipes_and_runs(tmp_path, capsys):
    assert cli.main(["train", *TINY, "--output", str(tmp_path / "ended")]) == 0
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text((tmp_path / "ended" / "config.json").read_text())
    capsys.readouterr()
    assert cli.main(["ls"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in RECIPES)
    assert all(name in shown for name in ("rigl", "block:16", "resnet18"))
    assert all(name.rstrip(":") in shown for name in (*DATA_SETS, *FEEDS))
    assert cli.main(["ls", "runs", "--runs", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[1:3] for row in rows] == [["not", "ended"], [rows[1][1], "density"]]
    assert rows[1][1].endswith("%")
