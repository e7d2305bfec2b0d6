import math
import time
from dataclasses import replace

import pytest
import torch

from cutwork.bench import run as comparison
from cutwork.bench.results import Measurement
from cutwork.bench.run import Candidate, Group, Run, Runnable, UnavailableError, add_ratios, worst_error

DENSE = Measurement("linear", "4x4", 2, "forward", "dense", 1.0, "dense", "fp32", equal=False, error=None)
TILE = replace(DENSE, pattern="block:2", density=0.5, form="tile", ideal=2.0)
RIGHT = torch.tensor([3.0, 4.0])


class FakeClock:
    """A clock that forms move on."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def candidate(row, clock, seconds, result=RIGHT, **amounts):
    def run():
        clock.now += seconds

    return Candidate(row, lambda: Runnable(run, lambda: [result]), lambda: [RIGHT], **amounts)


def compared(*candidates, clock, seconds=100):
    run = Run()
    run.compare(Group("a group", lambda: candidates), seconds=seconds, clock=clock)
    return run


def test_ratios_are_of_medians_and_rates_are_amounts_over_time():
    clock = FakeClock()
    run = compared(
        candidate(DENSE, clock, 0.08),
        candidate(replace(DENSE, form="compiled"), clock, 0.04),
        candidate(TILE, clock, 0.01, operations=2e9, bytes=1e9),
        clock=clock,
    )
    base, compiled, tile = run.rows
    assert (base.ratio, base.ratio_to_fp32) == (pytest.approx(0.5), 1)
    assert (compiled.ratio, compiled.ratio_to_fp32) == (1, pytest.approx(2))
    assert (tile.ratio, tile.ratio_to_fp32) == (pytest.approx(4), pytest.approx(8))
    assert (tile.median_ms, tile.gflops_per_s, tile.gbytes_per_s) == pytest.approx((10, 200, 100))
    assert tile.equal and tile.error == 0
    assert not run.notes


@pytest.mark.parametrize("wrong", [RIGHT + 0.1, RIGHT[:1], RIGHT * math.nan, RIGHT * math.inf])
def test_a_form_with_wrong_results_is_not_timed_and_has_no_ratio(wrong):
    clock = FakeClock()
    run = compared(candidate(DENSE, clock, 1), candidate(TILE, clock, 0.1, wrong), clock=clock)
    tile = run.rows[-1]
    assert not tile.equal
    assert (tile.median_ms, tile.ratio, tile.ratio_to_fp32, tile.gflops_per_s) == (None,) * 4
    results = run.results("a command")
    assert not results.all_are_equal
    assert "differs" in str(results)


def test_dense_forms_with_wrong_results_are_nothing_to_compare_with():
    rows = [replace(DENSE, median_ms=1.0, equal=False), replace(TILE, median_ms=2.0, equal=True)]
    assert [row.ratio for row in add_ratios(rows)] == [None, None]


@pytest.mark.parametrize(
    ("precision", "error", "equal"), [("fp32", 1e-3, False), ("bf16", 1e-3, True), ("bf16", 1e-1, False)]
)
def test_the_tolerance_suits_the_precision(precision, error, equal):
    clock = FakeClock()
    row = replace(TILE, precision=precision)
    (found,) = compared(candidate(row, clock, 1, RIGHT * (1 + error)), clock=clock).rows
    assert found.equal == equal
    assert found.error == pytest.approx(error, rel=1e-3)


def test_a_form_that_cannot_run_here_is_one_note():
    def missing():
        raise UnavailableError("scipy is not installed")

    clock = FakeClock()
    absent = [
        Candidate(replace(TILE, form="scipy", density=density), missing, lambda: [RIGHT]) for density in (0.1, 0.2)
    ]
    run = compared(candidate(DENSE, clock, 1), *absent, clock=clock)
    assert [row.form for row in run.rows] == ["dense"]
    assert list(run.notes) == ["scipy fp32 left out: scipy is not installed"]


def test_forms_are_built_when_their_group_comes_not_before():
    run, made = Run(), []
    groups = [Group(name, lambda name=name: made.append(name) or []) for name in "ab"]
    run.compare(groups[0], seconds=1)
    assert made == ["a"]


def test_the_worst_error_is_that_of_the_worst_result():
    assert worst_error([RIGHT, RIGHT * 1.5], [RIGHT, RIGHT]) == pytest.approx(0.5)
    assert worst_error([torch.ones(2)], [torch.zeros(2)]) == pytest.approx(math.sqrt(2))
    assert worst_error([RIGHT.bfloat16()], [RIGHT]) == 0


def slow_to_check(row, clock, seconds, log=None):
    """Return a form whose check takes as long as a run of it."""

    def results():
        clock.now += seconds
        return [RIGHT]

    def run():
        clock.now += seconds

    def build():
        if log is not None:
            log.append(row)
        return Runnable(run, results)

    return Candidate(row, build, lambda: [RIGHT])


def test_a_form_that_would_pass_its_share_by_far_is_left_out_unbuilt(monkeypatch):
    monkeypatch.setattr(comparison, "slowdown", lambda precision, work, clock: 60 if precision == "bf16" else 1)
    clock, log = FakeClock(), []
    bf16 = replace(DENSE, precision="bf16")
    forms = [slow_to_check(row, clock, 1, log) for row in (DENSE, bf16, TILE)]
    run = compared(*forms, clock=clock, seconds=60)
    assert log == [DENSE, TILE]
    assert [row.form for row in run.rows] == ["dense", "tile"]
    assert next(iter(run.notes)) == (
        "a group: left out for lack of time: dense bf16 (about 120 s); give more --seconds"
    )
    assert clock.now <= 60


def test_a_form_that_fits_only_once_is_timed_once_and_marked():
    clock = FakeClock()
    run = compared(slow_to_check(DENSE, clock, 4), slow_to_check(TILE, clock, 1), clock=clock, seconds=20)
    dense, tile = run.rows
    assert (dense.rounds, dense.spread, dense.is_rough, dense.is_steady) == (1, None, True, False)
    assert tile.spread is not None or tile.rounds < 3
    assert tile.ratio == 4
    assert "4000 ms?" in str(run.results("a command"))
    assert "? timed once or twice only, for lack of time: how far its runs lie apart is unknown" in run.notes
    assert clock.now <= 20


def test_a_dense_form_that_alone_takes_too_long_leaves_the_group_out(monkeypatch):
    monkeypatch.setattr(comparison, "operations_per_s", lambda clock: 1e9)
    clock, log = FakeClock(), []
    dense = replace(slow_to_check(DENSE, clock, 1000, log), operations=1e12)
    run = compared(dense, slow_to_check(TILE, clock, 1, log), clock=clock, seconds=60)
    assert not log and not run.rows
    assert list(run.notes) == ["a group: left out for lack of time: dense fp32 (about 2000 s); give more --seconds"]


def test_of_an_essential_group_every_form_is_measured():
    clock = FakeClock()
    run = Run()
    forms = [slow_to_check(row, clock, 100) for row in (DENSE, TILE)]
    run.compare(Group("a group", lambda: forms, is_essential=True), seconds=1, clock=clock)
    assert [row.ratio for row in run.rows] == [1, 1]


def test_what_takes_longer_than_it_may_is_ended_and_left_out():
    clock = FakeClock()

    def endless():
        while True:
            time.sleep(0.01)

    compiled = Candidate(replace(DENSE, form="compiled"), endless, lambda: [RIGHT])
    start = time.perf_counter()
    run = compared(candidate(DENSE, clock, 0.01), compiled, candidate(TILE, clock, 0.01), clock=clock, seconds=0.6)
    assert time.perf_counter() - start < 5
    assert [row.form for row in run.rows] == ["dense", "tile"]
    assert next(iter(run.notes)) == (
        "a group: left out for lack of time: compiled fp32 (not built and checked within 0.2 s); give more --seconds"
    )


def test_whoever_is_stopped_while_timing_keeps_the_rounds_until_then():
    clock, count = FakeClock(), []

    def run():
        clock.now += 1
        count.append(1)
        if len(count) == 20:
            raise KeyboardInterrupt

    kept = Run()
    forms = [Candidate(DENSE, lambda: Runnable(run, lambda: [RIGHT]), lambda: [RIGHT]), candidate(TILE, clock, 0.5)]
    with pytest.raises(KeyboardInterrupt):
        kept.compare(Group("a group", lambda: forms), seconds=100, clock=clock)
    assert [row.ratio for row in kept.rows] == [1, 2]
    assert kept.rows[0].rounds == 8


def test_it_tells_what_it_looks_at_and_for_how_long():
    clock, told = FakeClock(), []
    run = Run(tell=lambda name, seconds: told.append((name, seconds)))
    forms = [slow_to_check(DENSE, clock, 1), slow_to_check(TILE, clock, 1)]
    run.compare(Group("a group", lambda: forms), seconds=60, clock=clock)
    assert told == [("dense fp32", 0), ("tile fp32 at 0.5", 3), ("timing 2 forms", 58)]
