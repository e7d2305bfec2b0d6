import math
from dataclasses import replace

import pytest
import torch

from cutwork.benchmark.comparison import Candidate, Group, Run, Runnable, UnavailableError, with_ratios, worst_error
from cutwork.benchmark.results import Row

DENSE = Row("linear", "4x4", 2, "forward", "dense", 1.0, "dense", "fp32", equal=False, error=None)
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


def compared(*candidates, clock):
    run = Run()
    run.compare(Group("a group", lambda: candidates), seconds=1, clock=clock)
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
    assert [row.ratio for row in with_ratios(rows)] == [None, None]


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
