"""Runs of a sweep as jobs, through submitit's executor for one machine."""

import json
import os
import signal
import sys
from contextlib import nullcontext

import pytest

from cutwork.lab import loop
from cutwork.lab.loop import Stopped
from cutwork.lab.sweeping import slurm
from cutwork.lab.sweeping.launching import Outcome
from cutwork.lab.sweeping.slurm import Job, open_executor, run_on_slurm
from cutwork.lab.sweeping.sweep import Sweep, spread
from cutwork.lab.training import Training

submitit = pytest.importorskip("submitit")
SHORT = Training().having(model="mlp:hidden=(16,16)", data="digits", batch=512, epochs=1, log_every=1)


def test_jobs_run_what_is_left_and_say_what_failed(tmp_path):
    sweep = Sweep(tmp_path, spread(SHORT, {"teacher": [None, "nowhere"]}))
    told: list[Outcome] = []
    with sweep.hold():
        executor = open_executor(tmp_path / "slurm", {"cluster": "local", "timeout_min": 5})
        run_on_slurm(sweep, sweep.left(), told.append, executor)
    outcomes = {outcome.name: outcome for outcome in told}
    assert outcomes["teacher=none"].summary == sweep.place("teacher=none").read_summary()
    assert outcomes["teacher=nowhere"].error == (
        "FileNotFoundError: nowhere holds no run: there is no config.json in it"
    )
    assert {*json.loads((tmp_path / "slurm" / "jobs.json").read_text())} == {*sweep.runs}
    assert sweep.left() == ["teacher=nowhere"]


def test_a_job_whose_time_is_over_is_handed_in_again_as_it_was(tmp_path):
    job = Job(SHORT, tmp_path, ["cutwork", "sweep"])
    again = job.checkpoint()
    assert again.function is job and not again.args


class Queue:
    """An executor whose jobs end when they are cancelled; when the first is looked at, the program is asked to stop."""

    cluster = "slurm"

    def __init__(self):
        self.handed = []

    def batch(self):
        return nullcontext()

    def submit(self, job):
        self.handed.append(job.folder.name)
        return Queued(None, "78")


class Queued:
    def __init__(self, folder, number):
        self.job_id, self.is_cancelled = number, False

    def done(self, force_check=False):
        if self.job_id == "77" and not (force_check or self.is_cancelled):
            os.kill(os.getpid(), signal.SIGUSR1)
        return self.is_cancelled

    def cancel(self, check):
        self.is_cancelled = True


def test_what_is_queued_already_is_not_handed_in_again_and_a_signal_cancels_all(tmp_path, monkeypatch):
    monkeypatch.setattr(submitit, "SlurmJob", Queued)
    monkeypatch.setattr(slurm, "PAUSE", 0.01)
    # The usual ones would end the tests if they were not listened to.
    monkeypatch.setattr(loop, "SIGNALS", (signal.SIGUSR1,))
    sweep = Sweep(tmp_path, spread(SHORT, {"seed": [0, 1]}))
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "jobs.json").write_text('{"seed=0": "77"}')
    queue, told = Queue(), []
    with pytest.raises(Stopped, match="2 of 2 runs are left; the same command goes on"):
        run_on_slurm(sweep, ["seed=0", "seed=1"], told.append, queue)
    assert queue.handed == ["seed=1"]
    assert json.loads((tmp_path / "slurm" / "jobs.json").read_text()) == {"seed=0": "77", "seed=1": "78"}
    assert [outcome.is_stopped for outcome in told] == [True, True]


def test_options_that_submitit_does_not_know_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"--slurm: .*timeout_mins"):
        open_executor(tmp_path, {"cluster": "local", "timeout_mins": 5})


def test_without_submitit_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ModuleNotFoundError, match=r"cutwork\[slurm\]"):
        open_executor(tmp_path, {})
