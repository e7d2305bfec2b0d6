"""A run that was stopped anywhere ends as one that was not, and its folder is enough to understand it."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cutwork.files.checkpoint import load
from cutwork.lab.loop import Stopped, train
from cutwork.lab.run_folder import RunFolder
from cutwork.lab.training import Training

from .runs import SHORT, StopAfter, equal

KINDS: dict[str, dict[str, Any]] = {
    "dense, with an average": {"ema": 0.9},
    "blocks that move, compressed": {"pattern": "block:8", "density": 0.25, "method": "rigl", "every": 3, "ema": 0.9},
    "single weights that move": {
        "pattern": "unstructured",
        "method": "set",
        "every": 3,
        "optimizer": "adamw",
        "lr": 1e-3,
    },
    "learned masks": {"pattern": "block:8", "method": "supermask", "density": 0.25},
    "chance inside the model": {"model": "wrn-10-1", "batch": 700, "lr": 0.05},
    "batches that add up": {"accumulate": 2, "batch": 128, "clip": 0.5, "label_smoothing": 0.1},
    "units left out by chance": {"pattern": "block:8", "density": 0.5, "drop_connect": 0.2},
    "a larger model": {
        "model": "mlp:hidden=(64,64,64)",
        "member": "wide",
        "pattern": "block:8",
        "density": 0.25,
        "method": "rigl",
        "every": 3,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(kind, tmp_path):
    training = Training().having(**SHORT | KINDS[kind])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    summary = train(training, whole)
    for step in (2, 4):
        with pytest.raises(Stopped, match=f"stopped after step {step} of"):
            train(training, broken, resume=step > 2, watch=StopAfter(step))
    again = train(training, broken, resume=True)
    assert equal(whole / "last.safetensors", broken / "last.safetensors")
    assert equal(whole / "best.safetensors", broken / "best.safetensors")
    timeless = [name for name in summary if name not in ("seconds", "memory_mib")]
    assert {name: again[name] for name in timeless} == {name: summary[name] for name in timeless}
    curves = [
        [(each["step"], each.get("loss"), each.get("test_loss")) for each in RunFolder(path).read_curves()]
        for path in (whole, broken)
    ]
    assert curves[0] == curves[1]


def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    training = Training().having(**SHORT | KINDS["blocks that move, compressed"] | {"epochs": 12})
    train(training, whole)
    code = (
        "import sys; from pathlib import Path; from cutwork.lab.loop import train; from cutwork.lab.training import "
        "Training; train(Training.from_json(sys.argv[1]), Path(sys.argv[2]), resume=True)"
    )
    for steps in (7, 25):
        process = subprocess.Popen([sys.executable, "-c", code, training.to_json(), str(killed)])
        # Until the run has come so far, whatever it does then.
        while process.poll() is None and not any(each["step"] >= steps for each in RunFolder(killed).read_curves()):
            time.sleep(0.002)
        process.kill()
        process.wait()
    train(training, killed, resume=True)
    assert equal(whole / "last.safetensors", killed / "last.safetensors")


def test_the_folder_says_what_was_run_and_what_came_of_it(tmp_path):
    training = Training().having(**SHORT, pattern="block:8", density=0.25, lr=0.2)
    summary = train(training, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.read_config() == training
    assert folder.read_summary() == json.loads(json.dumps(summary))
    assert summary["density"] == pytest.approx(0.25, abs=0.02)
    assert summary["test_accuracy"] > 0.5
    header, *rows = folder.table.read_text().splitlines()
    assert {"step", "samples", "flops", "loss", "gradient_norm", "density", "test_accuracy"} <= {*header.split(",")}
    assert len(rows) == len(folder.read_curves())
    assert folder.command.read_text().startswith("cutwork")


def test_the_best_model_is_kept_and_can_be_loaded_alone(tmp_path):
    from cutwork.data import make_feed
    from cutwork.data.feed import Feeding
    from cutwork.lab.opening import load_trained

    train(Training().having(**SHORT, pattern="block:8", density=0.25, method="rigl", every=3), tmp_path / "run")
    feed = make_feed("digits", Feeding())
    model = load_trained(tmp_path / "run", feed, torch.device("cpu"))
    with torch.no_grad():
        right = [(model(x).argmax(1) == y).float().mean() for x, y in feed.testing()]
    assert float(right[0]) == pytest.approx(RunFolder(tmp_path / "run").read_summary()["best_accuracy"])


def test_a_student_learns_from_a_teacher(tmp_path):
    given = SHORT | {"epochs": 20, "batch": 128}
    train(Training().having(**given), tmp_path / "teacher")
    taught = {"teacher": str(tmp_path / "teacher"), "teacher_weight": 1.0, "temperature": 2.0}
    # All that it learns, it learns from the teacher.
    summary = train(Training().having(**given | taught), tmp_path / "student")
    assert summary["test_accuracy"] > 0.7


def test_two_processes_train_as_one_does_on_their_batches_together(tmp_path):
    given = SHORT | {"pattern": "block:8", "density": 0.25, "method": "rigl", "every": 3, "epochs": 2}
    train(Training().having(**given), tmp_path / "one")
    code = (
        "import sys; from pathlib import Path; from cutwork.lab.loop import train; from cutwork.lab.training import "
        "Training; train(Training.from_json(sys.argv[1]), Path(sys.argv[2]))"
    )
    script = tmp_path / "program.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    halved = Training().having(**given | {"batch": 128}).to_json()
    done = subprocess.run([*command, halved, str(tmp_path / "two")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": 0}, "the run has 0 steps"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg'; write sgd, nesterov"),
        ({"batch": 100_000}, "fewer than a batch of 100000"),
        ({"accumulate": 100}, "fewer than make one step"),
        ({"pattern": "block:8", "method": "static", "every": 5}, "the method 'static' has no 'every'"),
        ({"member": "wid", "pattern": "block:8"}, r"unknown member 'wid' \(did you mean 'wide'\?\)"),
        (
            {"model": "mlp:hidden=(64,64,64)", "member": "wide", "density": 0.25},
            "the member 'wide' is sparse; choose a pattern",
        ),
        ({"pattern": "block:8", "layers": "head"}, "means only the first layer or the last"),
        ({"log": ("tensorbord",)}, "unknown log 'tensorbord'"),
        ({"log_every": 0}, "log_every=0"),
        ({"device": "cda"}, "unknown device 'cda'"),
        ({"schedule": "cosin"}, r"unknown schedule 'cosin' \(did you mean 'cosine'\?\); write constant, cosine"),
        ({"precision": "fp23"}, r"unknown precision 'fp23' .*; write fp32, bf16, fp16"),
        ({"storage": "compresed"}, r"unknown storage 'compresed' \(did you mean 'compressed'\?\)"),
    ],
)
def test_what_cannot_be_run_is_said(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(Training().having(**SHORT | given), tmp_path / "run")
    # Once it is written rightly, the same folder is good for it.
    assert not RunFolder(tmp_path / "run").is_begun


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path):
    train(Training().having(**SHORT | {"steps": 1}), tmp_path / "run")
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="holds a run already; go on with it by --resume"):
        train(Training().having(**SHORT), tmp_path / "run")
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_a_checkpoint_that_is_damaged_is_named_and_nothing_is_lost(tmp_path):
    training = Training().having(**SHORT)
    with pytest.raises(Stopped):
        train(training, tmp_path / "run", watch=StopAfter(3))
    file = tmp_path / "run" / "last.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    curves = (tmp_path / "run" / "curves.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"last\.safetensors"):
        train(training, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "curves.jsonl").read_bytes() == curves
    file.write_bytes(content)
    train(training, tmp_path / "run", resume=True)


def test_a_checkpoint_is_one_of_the_library(tmp_path):
    from cutwork.models.zoo import make_mlp

    train(Training().having(**SHORT, pattern="block:8", density=0.25), tmp_path / "run")
    assert set(load(tmp_path / "run" / "best.safetensors", make_mlp(64, hidden=(32, 32))).layers) == {"fc2"}


def test_a_run_begins_with_the_weights_of_another(tmp_path):
    given = SHORT | {"pattern": "block:8", "density": 0.25}
    train(Training().having(**given | {"epochs": 20, "batch": 128}), tmp_path / "first")
    weights = str(tmp_path / "first" / "best.safetensors")
    again = train(Training().having(**SHORT | {"weights": weights, "steps": 1, "lr": 1e-6}), tmp_path / "second")
    assert again["density"] == pytest.approx(0.25, abs=0.02)
    assert again["test_accuracy"] == pytest.approx(
        RunFolder(tmp_path / "first").read_summary()["best_accuracy"], abs=0.02
    )
