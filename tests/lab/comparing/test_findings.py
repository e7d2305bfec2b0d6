"""What runs came to, beside each other."""

import json

import pytest

from cutwork.lab.comparing.findings import (
    best_within,
    common,
    differing,
    find_runs,
    group_runs,
    label_of,
    naming,
    shares_of_dense,
)
from cutwork.lab.comparing.leaderboard import Leaderboard
from cutwork.lab.run_folder import RunFolder
from cutwork.lab.sweeping.sweep import Sweep, spread
from cutwork.lab.training import Training

BASE = Training().having(model="mlp", data="digits", batch=100)


def write_run(folder, training, *, accuracy, step_ms=10.0, is_done=True):
    """Write the folder of a run whose steps took so long."""
    place = RunFolder(folder)
    place.begin(training)
    density = training.sparse.density or 1.0
    for step, slower in enumerate((5, 1, 1), 1):
        per_second = 1000 * training.running.batch / step_ms / slower
        seen = {"step": step, "samples": step * training.running.batch, "density": density}
        place.add({**seen, "loss": 1 / step, "samples_per_second": per_second})
    place.add({**seen, "test_accuracy": accuracy, "epoch": 1})
    if is_done:
        summary = {"test_accuracy": accuracy - 0.01, "best_accuracy": accuracy, "test_loss": 1.0}
        place.end({**seen, **summary, "flops": 1e9, "seconds": 2.0})
    return place


def write_sweep(folder, accuracies):
    """Write a sweep of which each run came to an accuracy, and failed where that is None."""
    runs = spread(BASE, {"pattern": ["dense", "block:8"], "density": [0.5, 0.1], "seed": [0, 1]})
    sweep = Sweep(folder, runs)
    with sweep.hold():
        for name, accuracy in zip(runs, accuracies, strict=True):
            if accuracy is None:
                sweep.place(name).fail(ValueError(f"no {name}"))
            else:
                density = runs[name].sparse.density or 1.0
                write_run(folder / name, runs[name], accuracy=accuracy, step_ms=10 * (0.2 + 0.8 * density))
    return sweep


@pytest.fixture
def runs(tmp_path):
    write_sweep(tmp_path / "swept", [0.94, 0.965, 0.93, 0.97, 0.8, None])
    return find_runs([tmp_path / "swept"])


def test_the_best_come_first_and_what_failed_last(runs):
    assert [run.name for run in runs] == [
        "pattern=block:8,density=0.5,seed=1",
        "pattern=dense,seed=1",
        "pattern=dense,seed=0",
        "pattern=block:8,density=0.5,seed=0",
        "pattern=block:8,density=0.1,seed=0",
        "pattern=block:8,density=0.1,seed=1",
    ]
    assert [run.state for run in runs[-2:]] == ["ended", "failed: ValueError: no pattern=block:8,density=0.1,seed=1"]
    assert runs[0].step_ms == pytest.approx(6.0)


def test_what_is_said_of_masks_is_compared_where_there_are_some(runs):
    assert {*differing(runs)} == {"pattern", "density", "seed"}
    assert differing(runs)["density"] == [0.5, None, None, 0.5, 0.1, 0.1]
    assert naming(runs) == ["pattern", "density"]
    assert common(runs)["method"] == "static"
    assert len(common(runs)) + 3 == len({**common(runs), **differing(runs)})


def test_runs_that_differ_in_the_seed_alone_are_a_group(runs):
    groups = group_runs(runs, naming(runs))
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("dense", 2),
        ("block:8, density=0.5", 2),
        ("block:8, density=0.1", 1),
    ]
    assert groups[1].mean == pytest.approx(0.95)
    assert groups[1].spread == pytest.approx(0.02 * 2**0.5)
    assert groups[2].spread is None
    assert label_of(runs[0], []) == "sparse"


def test_times_are_shares_of_dense_runs_that_are_alike(runs, tmp_path):
    shares = shares_of_dense(runs, {run.name: run.step_ms for run in runs})
    assert shares["pattern=dense,seed=0"] == 1.0
    assert shares["pattern=block:8,density=0.1,seed=0"] == pytest.approx(0.28)
    best = {limit: run and run.name for limit, run in best_within(runs, shares).items()}
    assert best[1.0] == best[0.75] == "pattern=block:8,density=0.5,seed=1"
    assert best[0.5] == best[0.33] == "pattern=block:8,density=0.1,seed=0"
    assert best[0.25] is None
    other = BASE.having(pattern="block:8", density=0.5, batch=50)
    write_run(tmp_path / "swept" / "other", other, accuracy=0.5)
    again = find_runs([tmp_path / "swept"])
    assert "other" not in shares_of_dense(again, {run.name: run.step_ms for run in again})


def test_two_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("a/run", "b/run"):
        write_run(tmp_path / folder, BASE, accuracy=0.5)
    assert [run.name for run in find_runs([tmp_path / "a" / "run"])] == ["run"]
    assert [run.name for run in find_runs([tmp_path / "a", tmp_path / "b"])] == ["a/run", "b/run"]
    assert [run.name for run in find_runs([tmp_path])] == ["a/run", "b/run"]
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    assert [run.name for run in find_runs(paths)] == [str(path.resolve()) for path in paths]
    assert len(find_runs([tmp_path, *paths])) == 2
    with pytest.raises(FileNotFoundError, match="there is no run in"):
        find_runs([tmp_path / "c"])


def test_a_run_that_has_not_ended_counts_by_its_best_epoch(tmp_path):
    write_run(tmp_path, BASE, accuracy=0.7, is_done=False)
    (run,) = find_runs([tmp_path])
    assert (run.best, run.state) == (0.7, "not ended: 3 steps")
    assert differing([run]) == {}


def test_a_program_reads_what_people_read(runs):
    board = Leaderboard(runs, {"pattern=dense,seed=0": 4.0, "pattern=block:8,density=0.5,seed=1": 3.0})
    told = json.loads(board.to_json())
    first, last = told["runs"][0], told["runs"][-1]
    assert (first["rank"], first["best_accuracy"], first["test_accuracy"]) == (1, 0.97, pytest.approx(0.96))
    assert (first["forward_ms"], first["forward_share"], first["step_share"]) == (3.0, 0.75, pytest.approx(0.6))
    assert first["options"] == {"pattern": "block:8", "density": 0.5, "seed": 1}
    assert told["runs"][1]["options"] == {"pattern": "dense", "seed": 1}
    assert (last["best_accuracy"], last["step_ms"]) == (None, None)
    assert told["best_within"]["forward"]["0.75"] == first["run"]
    table = str(board).splitlines()
    assert table[1].split()[:4] == ["1", first["run"], "97.00%", "96.00%"]
    assert "failed: ValueError: no " in table[-1]
