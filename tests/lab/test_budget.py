"""The pattern and the density of a run follow from what is measured, and are written down."""

import pytest

from cutwork.cli import main as cli
from cutwork.lab import stopwatch
from cutwork.lab.budget import meet_budget
from cutwork.lab.loop import train
from cutwork.lab.processes import Processes
from cutwork.lab.run_folder import RunFolder
from cutwork.lab.stopwatch import Stopwatch, Times
from cutwork.lab.training import Training

from .runs import SHORT, StopAfter

# What a step takes beside what is kept, and how much more than its share a kept weight takes.
OVERHEAD = {"vector:16": (0.3, 1.5), "block:16": (0.2, 1.0), "block:32": (0.2, 0.9), "2:4": (0.6, 0.4)}


class FakeStopwatch:
    """Measures without a clock: a share grows with the density, and patterns differ."""

    def __init__(self, training=None, place=None) -> None:
        self.asked = []

    def __call__(self, training: Training) -> Times:
        pattern, density = training.sparse.pattern, training.sparse.density
        self.asked.append((pattern, density))
        if pattern not in OVERHEAD:
            raise ValueError(f"{pattern} does not fit")
        fixed, slope = OVERHEAD[pattern]
        return Times(dense_s=0.01, share=fixed + slope * (0.5 if density is None else density), is_steady=True)


def asking(**options) -> Training:
    return Training().having(**SHORT | {"budget": 0.5, **options})


def test_of_what_meets_the_budget_most_weights_are_kept():
    measure = FakeStopwatch()
    chosen, choice = meet_budget(asking(), measure)
    assert chosen.sparse.pattern == "block:32"
    # Of block:32 a density of 1/3 meets the budget just so.
    assert 0.95 / 3 <= chosen.sparse.density <= 1 / 3
    assert chosen.sparse.budget is None
    assert choice.chosen.times.share <= 0.5
    assert "chosen: block:32 at density" in str(choice)
    assert "10 ms" in str(choice)
    # A later pattern is measured only where it would keep more than the best before it.
    firsts = {
        pattern: next(density for name, density in measure.asked if name == pattern)
        for pattern in OVERHEAD
        if pattern != "2:4"
    }
    assert firsts["vector:16"] == 0.05 < firsts["block:16"] < firsts["block:32"]
    assert len(measure.asked) <= 3 * 7


def test_the_run_s_own_pattern_stays_and_others_may_be_offered():
    assert meet_budget(asking(pattern="block:16"), FakeStopwatch())[0].sparse.pattern == "block:16"
    offered = asking(pattern="block:16", budget_patterns=("vector:16", "block:32"))
    assert meet_budget(offered, FakeStopwatch())[0].sparse.pattern == "block:32"


def test_a_pattern_with_its_own_density_is_measured_once():
    measure = FakeStopwatch()
    chosen, choice = meet_budget(asking(pattern="2:4", budget=0.9), measure)
    assert (chosen.sparse.pattern, chosen.sparse.density) == ("2:4", None)
    assert measure.asked == [("2:4", None)]
    assert choice.chosen.density == 0.5


def test_a_coarser_pattern_must_keep_more_than_a_twentieth_more():
    offered = asking(budget_patterns=("block:32", "block:16", "vector:16"))
    measure = FakeStopwatch()
    assert meet_budget(offered, measure)[0].sparse.pattern == "block:32"
    assert [name for name, _ in measure.asked[-2:]] == ["block:16", "vector:16"]


def test_a_pattern_that_does_not_fit_is_listed_with_the_reason():
    _, choice = meet_budget(asking(budget_patterns=("block:64", "block:16")), FakeStopwatch())
    assert choice.obstacles == {"block:64": "block:64 does not fit"}
    assert "block:64: block:64 does not fit" in str(choice)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"budget": 0.1},
            r"cannot take 0.1 of the dense model's time here: the best is 0.2[45], by block:32 at density 0.05",
        ),
        ({"budget": 0.1, "budget_of": "inference"}, "a forward pass cannot take 0.1"),
        ({"pattern": "2:4"}, "the best is 0.80, by 2:4 at density 0.5"),
        ({"budget": 1.5}, r"budget=1.5; give a share of the dense model's time"),
        ({"budget": 0}, r"budget=0; give a share"),
        ({"member": "wide"}, "the member 'wide' is as large as"),
        ({"budget_patterns": ("blok:8",)}, "blok:8"),
        ({"budget_patterns": ("block:64",)}, "no pattern can be measured for the budget; block:64: .* does not fit"),
        ({"budget_of": "traning"}, "unknown budget_of 'traning'"),
    ],
)
def test_what_cannot_be_met_is_refused_with_the_best_there_is(given, message):
    with pytest.raises(ValueError, match=message):
        meet_budget(asking(**given), FakeStopwatch())


class Hearing(StopAfter):
    """A watch that notes what was told before the first step."""

    def __init__(self) -> None:
        super().__init__(0)
        self.heard = []

    def step(self, done, steps, record) -> None:
        self.heard.append(done)

    def tell(self, what) -> None:
        self.heard.append(what)


def test_a_run_says_what_it_chose_before_it_begins_and_never_measures_again(tmp_path, monkeypatch):
    monkeypatch.setattr("cutwork.lab.budget.Stopwatch", FakeStopwatch)
    watch = Hearing()
    asked = asking(pattern="block:16", steps=2)
    train(asked, tmp_path / "run", watch=watch)
    assert "chosen: block:16 at density" in watch.heard[0]
    assert watch.heard[1:] == [1, 2]
    folder = RunFolder(tmp_path / "run")
    written = folder.read_config()
    assert written.sparse.budget is None
    assert 0.2 < written.sparse.density <= 0.3
    assert folder.budget.read_text().strip() == watch.heard[0]

    monkeypatch.setattr("cutwork.lab.budget.Stopwatch", None)
    folder.summary.unlink()
    train(asked, tmp_path / "run", resume=True)
    train(written, tmp_path / "again")
    assert RunFolder(tmp_path / "again").read_config() == written


def test_the_command_given_again_goes_on_with_what_was_chosen(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cutwork.lab.budget.Stopwatch", FakeStopwatch)
    given = ["train", "--model", "mlp:hidden=(64,64)", "--data", "digits", "--batch", "512", "--steps", "1"]
    given += ["--budget", "0.5", "--output", str(tmp_path / "run"), "--or-resume"]
    assert cli.main(given) == 0
    assert "chosen: block:32" in capsys.readouterr().err
    monkeypatch.setattr("cutwork.lab.budget.Stopwatch", None)
    assert cli.main(given) == 0
    assert cli.main([*given, "--lr", "0.5"]) == 2
    assert "was begun with other options" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        {"method": "rigl", "every": 1},
        {"method": "gradual", "precision": "bf16"},
        {"method": "supermask", "accumulate": 2},
        {"budget_of": "inference", "method": "supermask"},
    ],
)
def test_a_share_is_measured_in_turns_with_the_dense_model(given, monkeypatch):
    monkeypatch.setattr(stopwatch, "SECONDS", 0.02)
    training = asking(**given)
    measure = Stopwatch(training, Processes.alone("cpu"))
    times = measure(training.having(pattern="block:8", density=0.25))
    # No time is asserted on: all that is known is that both were measured.
    assert times.dense_s > 0
    assert times.share > 0
    assert times.sparse_s == pytest.approx(times.share * times.dense_s)
