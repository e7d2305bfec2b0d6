"""The experiments of benchmarks/accuracy.py: each run is one row, and none is run twice."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import cutwork as cw

FILE = Path(__file__).parents[1] / "benchmarks" / "accuracy.py"


@pytest.fixture
def accuracy(monkeypatch):
    spec = importlib.util.spec_from_file_location("accuracy", FILE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "accuracy", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(accuracy, monkeypatch, tmp_path):
    """Return the script with one small piece, and a folder of its own."""
    piece = accuracy.Piece(
        "a few runs",
        accuracy.grid(**accuracy.DIGITS | {"epochs": (1,)}, density=(0.1, 0.05), lr=(1e-3,), seed=range(2)),
    )
    monkeypatch.setattr(accuracy, "PIECES", {"small": piece})
    monkeypatch.setattr(accuracy, "FOLDER", tmp_path)
    return accuracy


def test_the_page_says_what_the_files_say(accuracy):
    assert accuracy.page() == (FILE.with_suffix("") / "RESULTS.md").read_text()


def test_a_run_that_stands_in_the_file_is_not_run_again(small, tmp_path, monkeypatch, capsys):
    assert small.main([]) == 0
    file = tmp_path / "small" / "results.csv"
    before = file.read_text()
    rows = list(csv.DictReader(before.splitlines()))
    assert [small.Run.from_row(row) for row in rows] == list(small.PIECES["small"].runs)
    assert "small 8/8: " in capsys.readouterr().out
    file.write_text("".join(before.splitlines(keepends=True)[:-1]))
    trained = []
    monkeypatch.setattr(small, "train", lambda run: trained.append(run) or dict.fromkeys(small.OUTCOMES, 1))
    small.main(["small"])
    assert trained == [small.PIECES["small"].runs[-1]]


def test_a_run_that_stands_in_the_file_of_another_piece_is_taken_from_there(small, tmp_path, monkeypatch):
    outcome = dict.fromkeys(small.OUTCOMES, "1")
    monkeypatch.setattr(small, "train", lambda run: outcome)
    small.main(["small"])
    small.PIECES["other"] = small.Piece("one of them", small.PIECES["small"].runs[:1])
    monkeypatch.setattr(small, "train", lambda run: pytest.fail("trained again"))
    small.main(["other"])
    assert small.results_of("other") == [(small.PIECES["small"].runs[0], outcome)]


def test_a_run_trains_the_same_again(small):
    run = small.Run(data="digits", method="rigl", epochs=1, lr=1e-3)
    first, second = small.train(run), small.train(run)
    assert (first["accuracy"], first["train_loss"]) == (second["accuracy"], second["train_loss"])


@pytest.mark.parametrize("method", ["dense", "static", "set", "rigl", "gradual", "supermask", "ste"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_method_trains_with_each_optimizer(method, optimizer, small):
    is_dense = method == "dense"
    run = small.Run(
        data="digits",
        method=method,
        pattern="dense" if is_dense else "block:16",
        optimizer=optimizer,
        epochs=1,
        lr=1e-3,
    )
    assert small.train(run)["accuracy"] > 5


@pytest.mark.parametrize("method", ["static", "rigl"])
def test_a_run_that_diverges_is_a_row_too(method, small):
    outcome = small.train(small.Run(data="digits", method=method, optimizer="sgd", epochs=2, lr=1e3))
    assert outcome["accuracy"] < 20
    assert outcome["train_loss"] != outcome["train_loss"]


def test_a_table_has_mean_spread_and_number_of_seeds_in_each_cell(small, monkeypatch):
    outcomes = [{"accuracy": str(80 + run.seed + (run.optimizer == "sgd"))} for run in small.PIECES["small"].runs]
    monkeypatch.setattr(
        small, "results_of", lambda name: list(zip(small.PIECES[name].runs, outcomes, strict=True))[:-1]
    )
    assert small.table("small") == [
        "| optimizer | density 0.1 | density 0.05 |",
        "|---|---:|---:|",
        "| sgd | 81.50 ± 0.71 (2) | 81.50 ± 0.71 (2) |",
        "| adamw | 80.50 ± 0.71 (2) | 80.00 (1) |",
    ]


def test_the_learning_rate_is_the_best_one_of_the_dense_model(small, monkeypatch):
    small.PIECES["learning-rates"] = None
    rows = [
        (small.Run(data="digits", lr=rate), {"accuracy": accuracy, "test_loss": loss})
        for rate, accuracy, loss in ((0.1, "90", "0.5"), (0.2, "91", "0.5"), (0.3, "91", "0.4"))
    ]
    monkeypatch.setattr(small, "results_of", lambda name: rows)
    assert small.best_rate("digits", "mlp", "adamw") == 0.3
    with pytest.raises(ValueError, match=r"first run python benchmarks/accuracy\.py learning-rates"):
        small.best_rate("digits", "mlp", "sgd")


def test_held_out_images_are_no_test_images(small):
    data, digits = small.load_images("digits", True), cw.load_digits()
    assert len(data.train_images) + len(data.test_images) == len(digits.train_images)
    assert torch.equal(torch.cat([data.train_labels, data.test_labels]), digits.train_labels)


def test_an_unknown_piece_is_refused_and_the_list_says_what_is_there(small, capsys):
    assert small.main(["smal"]) == 2
    assert "unknown piece 'smal'; write small" in capsys.readouterr().err
    assert small.main(["--list"]) == 0
    assert "0 of    8 runs  small" in capsys.readouterr().out
