"""Runs of a sweep in processes of their own: how they end, and what they share."""

import multiprocessing
import os
import time

import torch

from cutwork.lab.run_folder import RunFolder
from cutwork.lab.sweeping import launching
from cutwork.lab.sweeping.launching import Share, outcome_of, run_here, shares_of
from cutwork.lab.sweeping.sweep import Sweep, spread
from cutwork.lab.training import Training

SHORT = Training().having(model="mlp:hidden=(16,16)", data="digits", batch=512, epochs=1, log_every=1)


def test_runs_end_with_the_program_that_began_them(tmp_path):
    sweep = Sweep(tmp_path, spread(SHORT.having(epochs=100_000), {"seed": [0, 1]}))
    context = multiprocessing.get_context("forkserver")
    program = context.Process(target=run_here, args=(sweep, ["seed=0"], print))
    program.start()
    place = sweep.place("seed=0")
    while program.is_alive() and not place.read_curves():
        time.sleep(0.01)
    program.kill()
    program.join()
    for _ in range(600):
        if place.last.exists() and place.output.read_text() == "":
            before = len(place.read_curves())
            time.sleep(0.2)
            if before == len(place.read_curves()):
                break
        time.sleep(0.05)
    assert before == len(place.read_curves())
    assert not place.is_done and place.read_error() is None


def test_what_ends_without_a_word_is_named_with_its_signal(tmp_path):
    place = RunFolder(tmp_path)
    assert outcome_of(place, "seed=0", 1.0, -9).error == f"killed by signal 9; see {place.output}"
    assert outcome_of(place, "seed=0", 1.0, 3).error == f"its process ended with code 3; see {place.output}"
    assert outcome_of(place, "seed=0", 1.0, -15).is_stopped
    assert outcome_of(place, "seed=0", 1.0, launching.STOPPED).is_stopped


def test_runs_at_once_share_out_threads_and_gpus(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert shares_of(1) == [Share()]
    assert shares_of(3) == [Share(2, 0), Share(2, 1), Share(2, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert shares_of(16) == [Share(1, None)] * 16


def test_a_share_binds_the_process(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    Share(1, 1).take()
    assert torch.get_num_threads() == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
