"""Weights that are shared out are trained as one process does, and go on in any number of processes."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cutwork.cli import main as cli
from cutwork.lab.loop import Stopped, share_out, train
from cutwork.lab.processes import Processes
from cutwork.lab.run_folder import RunFolder
from cutwork.lab.sharding import find_blocks, find_parts, load_parts, save_parts
from cutwork.lab.training import Training

from .runs import SHORT, StopAfter, equal

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this build of PyTorch has no torch.distributed"
)
# The test images, 360, are not shared out evenly in batches of 179: one process has a batch more.
GIVEN = SHORT | {"pattern": "block:8", "density": 0.25, "epochs": 2, "test_batch": 179}
KINDS = {
    "masks that move": {
        "model": "vit:width=32,num_blocks=1,num_heads=2,patch=4",
        "storage": "dense",
        "method": "rigl",
        "every": 3,
        "lr": 0.05,
        "clip": 1.0,
    },
    "compressed": {},
    "learned masks": {"method": "supermask"},
    "a budget": {"budget": 0.5, "steps": 2},
    "norms with statistics": {"model": "resnet8:width=8,stem=pooled", "steps": 2},
}
PROGRAM = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from cutwork.lab import budget, stopwatch
from cutwork.lab.loop import Stopped, train
from cutwork.lab.training import Training

class StopAfter:
    def __init__(self, step): self.at = step
    def step(self, done, steps, record):
        if done == self.at: os.kill(os.getpid(), signal.SIGTERM)
    def epoch(self, done, steps, judged): pass
    def tell(self, what): print(what)

class WithoutChance(budget.Stopwatch):
    # It measures as ever, but what comes out depends on no clock.
    def __call__(self, training): return replace(super().__call__(training), share=training.sparse.density)

budget.Stopwatch = WithoutChance
stopwatch.SECONDS = 0.001

for number, (options, folder, stop) in enumerate(json.loads(sys.argv[1])):
    # Each run is a group of processes of its own.
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(number)
    try:
        train(Training.from_json(options), Path(folder), resume=True, watch=StopAfter(stop))
    except Stopped:
        pass
"""


def sharded(kind: str, **options) -> Training:
    return Training().having(**GIVEN | KINDS[kind] | {"shard": True} | options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the runs that two processes have made, of which one was begun by one process."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.raises(Stopped):
        train(sharded("masks that move"), folder / "from one", watch=StopAfter(3))
    halved = {kind: sharded(kind, batch=128).to_json() for kind in KINDS}
    runs = [
        *((halved[kind], str(folder / kind), 0) for kind in KINDS),
        (halved["masks that move"], str(folder / "from two"), 3),
        (sharded("masks that move").to_json(), str(folder / "from one"), 0),
    ]
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(folder / "program.py"), json.dumps(runs)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def check_close(one, other):
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["masks that move", "compressed", "learned masks"])
def test_two_processes_that_share_weights_out_train_as_one(kind, folder, tmp_path):
    summary = train(Training().having(**GIVEN | KINDS[kind]), tmp_path / "one")
    check_close(tmp_path / "one" / "best.safetensors", folder / kind / "best.safetensors")
    found = RunFolder(folder / kind).read_summary()
    for name in ("step", "samples", "flops", "density"):
        assert found[name] == summary[name]
    assert found["test_loss"] == pytest.approx(summary["test_loss"], rel=1e-3)


@pytest.mark.slow
def test_the_first_process_measures_a_budget_for_all(folder):
    run = RunFolder(folder / "a budget")
    assert 0.95 * 0.5 <= run.read_config().sparse.density <= 0.5
    assert "chosen: block:8 at density" in run.budget.read_text()


@pytest.mark.slow
def test_a_sharded_run_goes_on_in_another_number_of_processes(folder):
    # Begun by two, ended by one; and begun by one, ended by two.
    train(sharded("masks that move", batch=128), folder / "from two", resume=True)
    whole = folder / "masks that move"
    for name in ("from two", "from one"):
        check_close(whole / "best.safetensors", folder / name / "best.safetensors")
        assert [each["step"] for each in RunFolder(folder / name).read_curves()] == [
            each["step"] for each in RunFolder(whole).read_curves()
        ]


@pytest.mark.slow
def test_the_best_of_a_sharded_run_is_whole_and_is_judged_as_it_was(folder, capsys):
    run = folder / "norms with statistics"
    assert cli.main(["evaluate", str(run), "--json"]) == 0
    judged = json.loads(capsys.readouterr().out)["as trained"]["judgement"]
    assert judged["accuracy"] == RunFolder(run).read_summary()["best_accuracy"]
    assert judged["count"] == 360
    assert cli.main(["evaluate", str(run), "--checkpoint", "last"]) == 2
    assert "keeps its last model in parts" in capsys.readouterr().err


def test_a_run_that_would_be_sharded_alone_goes_on_to_the_bit(tmp_path):
    training = sharded("masks that move")
    train(training, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(training, tmp_path / "broken", watch=StopAfter(7))
    # What a process leaves that is killed while it saves.
    (tmp_path / "broken" / "last.parts" / "step-000000008.saving").mkdir()
    train(training, tmp_path / "broken", resume=True)
    assert equal(tmp_path / "whole" / "best.safetensors", tmp_path / "broken" / "best.safetensors")
    assert [path.name for path in (tmp_path / "broken" / "last.parts").iterdir()] == ["step-000000010"]


def test_parts_that_are_damaged_are_named_and_stay(tmp_path):
    training = sharded("masks that move")
    with pytest.raises(Stopped):
        train(training, tmp_path / "run", watch=StopAfter(3))
    (part,) = (tmp_path / "run" / "last.parts").glob("step-*/*.distcp")
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    curves = (tmp_path / "run" / "curves.jsonl").read_bytes()
    with pytest.raises(OSError, match=re.escape("last.parts/step-000000003 cannot be written or read")):
        train(training, tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "curves.jsonl").read_bytes() == curves
    part.write_bytes(content)
    train(training, tmp_path / "run", resume=True)


def test_the_newest_whole_checkpoint_counts(tmp_path):
    model, place = nn.Linear(3, 3), Processes.alone("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in (9, 10):
        save_parts(tmp_path, f"step-{step:09d}", model, optimizer, None, {"step": step}, place)
        assert find_parts(tmp_path) == tmp_path / f"step-{step:09d}"
    (tmp_path / "step-000000011.saving").mkdir()
    newest = find_parts(tmp_path)
    assert newest == tmp_path / "step-000000010"
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    assert load_parts(newest, model, optimizer, None, place) == {"step": 10}
    assert torch.equal(model.weight, before)


def test_batches_that_cannot_be_shared_out_are_said(tmp_path):
    with pytest.raises(Stopped):
        train(Training().having(**SHORT), tmp_path / "run", watch=StopAfter(1))
    folder = RunFolder(tmp_path / "run")
    for world, batch in ((1, 256), (2, 128), (4, 64)):
        shared = share_out(folder.read_config(), folder, Processes(0, world, torch.device("cpu")))
        assert shared.running.batch == batch
    with pytest.raises(ValueError, match="batches of 256 examples in all, which 3 processes cannot share out evenly"):
        share_out(folder.read_config(), folder, Processes(0, 3, torch.device("cpu")))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ema": 0.9}, r"ema=0.9 does not work with shard: an average of weights"),
        ({"fused": True}, "fused=True does not work with shard"),
        ({"compiled": True}, "compiled=True does not work with shard"),
        ({"precision": "fp16"}, "precision='fp16' does not work with shard: .*; use bf16"),
    ],
)
def test_what_does_not_work_sharded_is_refused_by_name(given, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(Training().having(**GIVEN | {"shard": True} | given), tmp_path / "run")
    assert not RunFolder(tmp_path / "run").is_begun


def test_blocks_that_share_a_parameter_with_the_rest_stay_with_it():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)
            self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 5)])
            self.blocks[2].weight = self.table.weight

    assert [*find_blocks(Tied())] == ["blocks.0", "blocks.1.0"]
