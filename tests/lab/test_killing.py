"""A run that is killed twenty times, at any moment, ends as one that never was."""

import json
import subprocess
import sys

import pytest

from cutwork.lab.loop import train
from cutwork.lab.run_folder import RunFolder
from cutwork.lab.training import Training

from .runs import SHORT, equal

KILLS = 20
# Forked, each attempt begins at once, so that kills meet steps, judging and saving rather than the imports.
PROGRAM = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from cutwork.lab.loop import train
from cutwork.lab.training import Training

torch.set_num_threads(1)
training, folder, kills, seed = Training.from_json(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(seed)
met = []
while len(met) < kills:
    child = os.fork()
    if not child:
        train(training, folder, resume=True)
        os._exit(0)
    time.sleep(chance.uniform(0.05, 0.5))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    # One that had ended already was not killed.
    if os.WIFEXITED(status):
        break
    met.append((folder / "last.safetensors").exists())
print(json.dumps(met))
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", [1])
def test_a_run_that_is_killed_twenty_times_ends_as_one_that_was_not(seed, tmp_path):
    moving = {"pattern": "block:8", "density": 0.25, "method": "rigl", "every": 3, "ema": 0.9, "clip": 1.0}
    training = Training().having(**SHORT | moving | {"epochs": 60})
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed")
    summary = train(training, whole.path)
    arguments = [training.to_json(), str(killed.path), str(KILLS), str(seed)]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    kills = json.loads(done.stdout)
    # All of them met a run that was not at its end, and most one that had something to lose.
    assert len(kills) == KILLS
    assert sum(kills) > KILLS / 2
    assert not killed.is_done
    again = train(training, killed.path, resume=True)
    assert equal(whole.last, killed.last)
    assert equal(whole.best, killed.best)
    timeless = [name for name in summary if name not in ("seconds", "memory_mib")]
    assert {name: again[name] for name in timeless} == {name: summary[name] for name in timeless}
    curves = [
        [(each["step"], each.get("loss"), each.get("test_loss")) for each in run.read_curves()]
        for run in (whole, killed)
    ]
    assert curves[0] == curves[1]
    # Nothing that was half written is left.
    assert {path.name for path in whole.path.iterdir()} == {path.name for path in killed.path.iterdir()}
