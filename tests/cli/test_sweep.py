"""The command that trains with many options' values: what it names, what it does again, and what it refuses."""

import json
import os
import shutil
import signal
import threading
import time

import pytest

from cutwork.cli import main as cli
from cutwork.lab.run_folder import RunFolder
from cutwork.lab.sweeping.sweep import read_sweep

TINY = ["--model", "mlp:hidden=(16,16)", "--data", "digits", "--batch", "512", "--epochs", "1", "--log-every", "1"]
SWEEP = ["sweep", *TINY, "--output", "swept"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def ended_at(folder):
    """Return when each run ended."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


def test_what_fails_keeps_no_other_from_running_and_alone_is_run_again(tmp_path, capsys):
    swept = tmp_path / "swept"
    assert cli.main(["train", *TINY, "--output", "a"]) == 0
    shutil.copytree("a", "b")
    given = [*SWEEP, "--over", "teacher=none,a,b,c", "--over", "seed=0,1", "--jobs", "2"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        cli.main(given)
    assert error.value.code == 1
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.partition(" ")[0] for line in lines[:8]] == [f"{place}/8" for place in range(1, 9)]
    assert sum("% right, " in line and line.endswith(" s") for line in lines) == 6
    assert lines[8] == "8 runs: 6 done, 2 failed"
    told = "failed: FileNotFoundError: c holds no run: there is no config.json in it"
    assert sorted(shown.err.splitlines()) == [f"cutwork: teacher=c,seed={seed} {told}" for seed in (0, 1)]
    first = ended_at(swept)
    assert len(first) == 6
    assert "lab/loop.py" in RunFolder(swept / "teacher=c,seed=0").error.read_text()

    shutil.copytree("a", "c")
    assert cli.main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "6 of 8 runs are done already"
    assert [line.partition(" ")[0] for line in lines[1:3]] == ["7/8", "8/8"]
    assert lines[3] == "8 runs: 8 done"
    second = ended_at(swept)
    assert len(second) == 8 and first.items() <= second.items()
    assert not [*swept.glob("*/error.txt")]
    seeds = {name: RunFolder(swept / name).read_config().running.seed for name in second}
    assert seeds["teacher=a,seed=1"] == 1 and seeds["teacher=none,seed=0"] == 0


def test_a_run_of_a_sweep_is_the_run_that_train_makes(tmp_path):
    sparse = ["--pattern", "block:8", "--density", "0.5"]
    assert cli.main([*SWEEP, *sparse, "--over", "seed=3,4"]) == 0
    assert cli.main(["train", *TINY, *sparse, "--seed", "4", "--output", "alone"]) == 0
    swept, alone = (RunFolder(tmp_path / name).read_summary() for name in ("swept/seed=4", "alone"))
    assert {**swept, "seconds": 0, "memory_mib": 0} == {**alone, "seconds": 0, "memory_mib": 0}


def test_a_sweep_that_is_stopped_saves_and_goes_on(tmp_path, capsys):
    given = [*SWEEP, "--epochs", "40", "--over", "seed=0,1"]
    place = RunFolder(tmp_path / "swept" / "seed=0")

    def stop():
        while not any(each["step"] >= 4 for each in place.read_curves()):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    stopping = threading.Thread(target=stop)
    stopping.start()
    with pytest.raises(SystemExit) as error:
        cli.main(given)
    stopping.join()
    assert error.value.code == 130
    shown = capsys.readouterr()
    assert shown.out.startswith("1/2 seed=0: stopped, ")
    assert shown.err == "cutwork: stopped; 2 of 2 runs are left; the same command goes on\n"
    assert place.last.exists() and not place.is_done and not (tmp_path / "swept" / "seed=1").exists()
    begun = place.config.stat().st_mtime_ns
    assert cli.main(given) == 0
    assert place.is_done and place.config.stat().st_mtime_ns == begun


def test_only_to_list_the_runs_writes_nothing(tmp_path, capsys):
    sparse = ["--over", "pattern=dense,block:8", "--over", "density=0.5,0.2"]
    assert cli.main([*SWEEP, *sparse, "--dry"]) == 0
    assert capsys.readouterr().out.split() == [
        "pattern=dense",
        "pattern=block:8,density=0.5",
        "pattern=block:8,density=0.2",
    ]
    assert not [*tmp_path.iterdir()]


def test_more_values_are_the_same_sweep_and_others_are_not(tmp_path, capsys):
    assert cli.main([*SWEEP, "--over", "seed=0,1"]) == 0
    assert cli.main([*SWEEP, "--over", "seed=0,1,2", "--dry"]) == 0
    shown = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split()[:2] for line in shown] == [["seed=0", "done,"], ["seed=1", "done,"], ["seed=2"]]
    for given, told in (
        (["--over", "seed=1,2"], "holds another sweep, whose run seed=0 is not among these"),
        (["--over", "seed=0,1", "--lr", "0.3"], "holds another sweep, whose run seed=0 has other options"),
        (["--over", "seed=0,1", "--output", "swept/seed=0"], "swept/seed=0 is the folder of a run"),
    ):
        assert cli.main([*SWEEP, *given]) == 2
        assert told in capsys.readouterr().err
    (tmp_path / "swept" / "sweep.json").write_text("{")
    assert cli.main([*SWEEP, "--over", "seed=0,1"]) == 2
    assert "sweep.json" in capsys.readouterr().err


def test_two_programs_do_not_run_one_sweep(tmp_path, capsys):
    from cutwork.lab.sweeping.sweep import Sweep, spread
    from cutwork.lab.training import Training

    with Sweep(tmp_path / "swept", spread(Training().having(), {"seed": [0, 1]})).hold():
        assert [*read_sweep(tmp_path / "swept").runs] == ["seed=0", "seed=1"]
        held = Sweep(tmp_path / "swept", read_sweep(tmp_path / "swept").runs)
        with pytest.raises(FileExistsError, match="another program runs the sweep"), held.hold():
            pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--over", "dnsity=0.1,0.2"], "there is no option 'dnsity' (did you mean 'density'?)"),
        (["--over", "density"], "--over density: write an option and its values, as in density=0.5,0.2"),
        (["--over", "density=0.1,half"], "density=half is no value of this option"),
        (
            ["--over", "optimizer=sgd,adm"],
            "optimizer=adm is no value of this option (did you mean 'adam'?); write sgd,",
        ),
        (["--over", "download=true,yes"], "download=yes is no value of this option; write true, false"),
        (["--over", "seed=1,1"], "no option has two values"),
        (["--over", "density=0.1,0.2"], "density makes no difference where nothing is sparse; give a pattern too"),
        (["--over", "data=folder:a/b,folder:a-b"], "two runs would be called data=folder:a-b"),
        (["--over", f"data=digits,folder:{'x' * 250}"], "it is too long; say less by --over"),
        (["--over", "seed=0,1", "--jobs", "0"], "jobs=0: run at least one at once"),
        (["--over", "seed=0,1", "--slurm", "timeout"], "--slurm timeout: write options as in timeout_min=600"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(given, message, capsys):
    assert cli.main([*SWEEP, *given]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_the_sweep_is_written_down_as_it_is_read(tmp_path):
    assert cli.main([*SWEEP, "--over", "lr=0.1,0.2", "--steps", "1"]) == 0
    written = json.loads((tmp_path / "swept" / "sweep.json").read_text())
    assert {name: one["optimizing"]["lr"] for name, one in written.items()} == {"lr=0.1": 0.1, "lr=0.2": 0.2}
