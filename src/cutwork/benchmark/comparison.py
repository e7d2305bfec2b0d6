"""Forms of one piece of work side by side: first whether they compute the same, then how long they take."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import final

import torch
from torch import Tensor

from cutwork.benchmark.results import DENSE_FORMS, Machine, Results, Row
from cutwork.timing import Clock, Timing, measure

# How far results may lie from those in fp32, as a share of their norm. Sums of fp32 in another order differ by 1e-6,
# rounding to bf16 by 4e-3; int8 has 127 steps each side of zero.
TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2, "int8": 4e-2}
# One that has fewer says little about a median.
MIN_ROUNDS = 5


class UnavailableError(Exception):
    """A form that cannot run here, with the reason; a note in the results, not an error."""


@final
@dataclass(frozen=True)
class Runnable:
    """A form ready to run.

    `run` is what is timed. `results` are functions that give its results to compare, in fp32 and in dense shape.
    """

    run: Callable[[], object]
    results: Callable[[], Sequence[Tensor]]


@final
@dataclass(frozen=True)
class Candidate:
    """A form with what stands about it in the table, how to make it ready, and the right results.

    The tolerance is that of the precision unless it has one of its own.
    """

    row: Row
    build: Callable[[], Runnable]
    expected: Callable[[], Sequence[Tensor]]
    operations: float | None = None
    bytes: float | None = None
    tolerance: float | None = None
    note: str = ""


@final
@dataclass(frozen=True)
class Group:
    """Candidates that are compared with each other, so they take turns; made when their time comes."""

    title: str
    candidates: Callable[[], Sequence[Candidate]]


@final
@dataclass
class Run:
    """Measures groups one after the other and keeps what it has, so that it may stop after any."""

    rows: list[Row] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)

    def compare(
        self, group: Group, *, seconds: float, min_rounds: int = MIN_ROUNDS, clock: Clock = perf_counter
    ) -> None:
        """Measure a group: build, check and then time its forms."""
        with torch.no_grad():
            self._compare(group.candidates(), seconds, min_rounds, clock)

    def _compare(self, candidates: Sequence[Candidate], seconds: float, min_rounds: int, clock: Clock) -> None:
        right: dict[str, tuple[Candidate, float, Runnable]] = {}
        wrong: list[Row] = []
        is_finite = True
        for candidate in candidates:
            row = candidate.row
            if candidate.note:
                self.notes[candidate.note] = None
            try:
                ready = candidate.build()
                error = worst_error(ready.results(), candidate.expected())
            except UnavailableError as reason:
                self.notes[f"{row.form} {row.precision} left out: {reason}"] = None
                continue
            # Not-a-number is no small error either.
            if error <= (candidate.tolerance or TOLERANCES[row.precision]):
                right[str(len(right))] = (candidate, error, ready)
            else:
                is_finite &= not math.isnan(error)
                wrong.append(replace(row, equal=False, error=error if math.isfinite(error) else None))
        timings = measure(
            {key: ready.run for key, (_, _, ready) in right.items()},
            seconds=seconds,
            min_rounds=min_rounds,
            clock=clock,
        )
        rows = [_timed(candidate, error, timings[key]) for key, (candidate, error, _) in right.items()]
        self.rows += [*with_ratios(rows), *wrong]
        if not all(timing.is_steady for timing in timings.values()):
            self.notes["~ the runs of this form lie far apart: the machine was busy, believe no small difference"] = (
                None
            )
        if not is_finite:
            self.notes["differs: inputs or results are not finite numbers, so there is nothing to compare"] = None
        elif wrong:
            self.notes["differs: the results are wrong by more than the precision allows, so there is no ratio"] = None

    def results(self, command: str) -> Results:
        """Return what there is so far."""
        return Results(Machine.here(command), tuple(self.rows), tuple(self.notes))


def worst_error(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Return the largest relative distance, in the Frobenius norm, of any result from the right one.

    It is infinite for another shape, and not a number where a result or the right one is not finite.

    >>> worst_error([torch.tensor([3.0, 4.4])], [torch.tensor([3.0, 4.0])])
    0.08...
    """
    errors = []
    for mine, right in zip(found, expected, strict=True):
        if mine.shape != right.shape:
            return math.inf
        # The norm of the difference, as a sum of doubles; it must not be lost in a large tensor.
        distance = torch.linalg.vector_norm(mine.float() - right, dtype=torch.float64)
        norm = torch.linalg.vector_norm(right, dtype=torch.float64)
        errors.append(float(distance / norm) if norm else float(distance))
    return max(errors) if all(map(math.isfinite, errors)) else math.nan


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """Compare rows whose results are right with the fastest dense one of them, and with dense fp32 as it is."""
    dense = [row.median_ms for row in rows if row.form in DENSE_FORMS and row.equal and row.median_ms]
    base = [row.median_ms for row in rows if row.is_base and row.equal and row.median_ms]
    return [
        replace(row, ratio=_ratio(dense, row), ratio_to_fp32=_ratio(base, row)) if row.equal else row for row in rows
    ]


def _ratio(dense: Sequence[float], row: Row) -> float | None:
    return min(dense) / row.median_ms if dense and row.median_ms else None


def _timed(candidate: Candidate, error: float, timing: Timing) -> Row:
    return replace(
        candidate.row,
        equal=True,
        error=error,
        median_ms=1e3 * timing.median_s,
        spread=timing.spread,
        rounds=timing.rounds,
        gflops_per_s=_rate(candidate.operations, timing),
        gbytes_per_s=_rate(candidate.bytes, timing),
    )


def _rate(amount: float | None, timing: Timing) -> float | None:
    return None if amount is None else 1e-9 * amount / timing.median_s
