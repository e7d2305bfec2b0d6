"""Forms of one piece of work side by side: whether they compute the same, and then how long they take."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, final

import torch
from torch import Tensor

from cutwork.bench.limits import OutOfTimeError, end_after, operations_per_s, slowdown
from cutwork.bench.results import DENSE_FORMS, FEW_ROUNDS, Measurement, Results
from cutwork.speed.machine import Machine
from cutwork.speed.timing import Clock, Timing, measure
from cutwork.speed.tolerance import MEASURED

# What takes less is not worth leaving out.
SHORT_S = 0.2
# Of the time that is left a form may spend this share on being compiled.
SHARE_TO_COMPILE = 1 / 3
# A guess before anything ran may be wrong by about so much.
DOUBT = 2


UNSTEADY_NOTE = "~ the runs of this form lie far apart: the machine was busy, believe no small difference"


class UnavailableError(Exception):
    """A form that cannot run here, with the reason; a note in the results, not an error."""


@final
@dataclass(frozen=True)
class Runnable:
    """A form ready to run.

    `run` is what is timed. `results` are functions that give its results to compare, in fp32 and in dense shape.
    `candidate` is what is known about the form only now, if that is more than before.
    """

    run: Callable[[], object]
    results: Callable[[], Sequence[Tensor]]
    candidate: "Candidate | None" = None


@final
@dataclass(frozen=True)
class Candidate:
    """A form with what stands about it in the table, how to make it ready, and the right results.

    The tolerance is that of the precision unless it has one of its own.
    """

    row: Measurement
    build: Callable[[], Runnable]
    expected: Callable[[], Sequence[Tensor]]
    operations: float | None = None
    bytes: float | None = None
    tolerance: float | None = None
    note: str = ""


@final
@dataclass(frozen=True)
class Group:
    """Candidates that are compared with each other, so they take turns; made when their time comes.

    Of an essential one every form is measured, however long it takes.
    """

    title: str
    candidates: Callable[[], Sequence[Candidate]]
    is_essential: bool = False


@final
@dataclass(frozen=True)
class Checked:
    """A form whose results are right, how far they are off, and how long finding that out took."""

    candidate: Candidate
    ready: Runnable
    error: float
    check_s: float


@final
@dataclass
class Run:
    """Measures groups one after the other and keeps what it has, so that it may stop after any.

    `tell` is told which form is being looked at, and for how many seconds, about.
    """

    rows: list[Measurement] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    tell: Callable[[str, float], object] = lambda form, seconds: None

    def compare(self, group: Group, *, seconds: float, clock: Clock = perf_counter) -> None:
        """Measure a group in so many seconds: build, check and then time its forms.

        What would pass its share of the time by far is left out, with a note; what is slower than its share is timed as
        often as fits in, at least once.
        """
        with torch.no_grad():
            self._compare(group, clock() + seconds, clock)

    def _compare(self, group: Group, end: float, clock: Clock) -> None:
        candidates = group.candidates()
        right: list[Checked] = []
        wrong: list[Measurement] = []
        late: list[str] = []
        for number, candidate in enumerate(candidates):
            # One timed call of each that is there already must fit in too.
            left = end - clock() - sum(checked.check_s for checked in right)
            needed = _needed(candidate, right, clock)
            self.tell(_name(candidate), needed)
            share = left / (len(candidates) - number)
            if not group.is_essential and needed > max(share if right else DOUBT * left, SHORT_S):
                late.append(f"{_name(candidate)} (about {_seconds(needed)})")
                if number == 0:
                    # Everything is compared with this dense form: without it there is nothing to say.
                    break
                continue
            share_of_left = SHARE_TO_COMPILE if candidate.row.form == "compiled" else 1.0
            limit = math.inf if group.is_essential or candidate.row.is_base else max(share_of_left * left, SHORT_S)
            try:
                checked = _check(candidate, limit, clock)
            except UnavailableError as reason:
                self.notes[f"{candidate.row.form} {candidate.row.precision} left out: {reason}"] = None
                continue
            except OutOfTimeError:
                late.append(f"{_name(candidate)} (not built and checked within {_seconds(limit)})")
                continue
            known = checked.candidate
            if known.note:
                self.notes[known.note] = None
            # Not-a-number is no small error either.
            if checked.error <= (known.tolerance or MEASURED[known.row.precision].layer):
                right.append(checked)
            else:
                error = checked.error if math.isfinite(checked.error) else None
                wrong.append(replace(known.row, equal=False, error=error))
        if late:
            self.notes[f"{group.title}: left out for lack of time: {', '.join(late)}; give more --seconds"] = None
        self._time(right, max(end - clock(), SHORT_S), clock)
        self._add_wrong(wrong)

    def _time(self, right: Sequence[Checked], seconds: float, clock: Clock) -> None:
        """Add a row for each form; if stopped, for each that was timed until then."""
        times: dict[str, list[float]] = {}
        if right:
            self.tell(f"timing {len(right)} form{'s' * (len(right) > 1)}", seconds)
        try:
            measure(
                {str(number): checked.ready.run for number, checked in enumerate(right)},
                seconds=seconds,
                strict=True,
                clock=clock,
                times=times,
            )
        finally:
            timings = {key: Timing.of(taken) for key, taken in times.items() if taken}
            rows = [_timed(right[int(key)], timing) for key, timing in timings.items()]
            self.rows += add_ratios(rows)
            if any(row.is_rough for row in rows):
                self.notes["? timed once or twice only, for lack of time: how far its runs lie apart is unknown"] = None
            if not all(row.is_steady or row.is_rough for row in rows):
                self.notes[UNSTEADY_NOTE] = None

    def _add_wrong(self, wrong: Sequence[Measurement]) -> None:
        self.rows += wrong
        if any(row.error is None for row in wrong):
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


def tensor_of(output: Any) -> Tensor:
    """Return the first tensor of what a model returns."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output
    return next(tensor_of(part) for part in parts if part is not None)


def add_ratios(rows: Sequence[Measurement]) -> list[Measurement]:
    """Compare rows whose results are right with the fastest dense one of them, and with dense fp32 as it is."""
    dense = [row.median_ms for row in rows if row.form in DENSE_FORMS and row.equal and row.median_ms]
    base = [row.median_ms for row in rows if row.is_base and row.equal and row.median_ms]
    return [
        replace(row, ratio=_ratio(dense, row), ratio_to_fp32=_ratio(base, row)) if row.equal else row for row in rows
    ]


def _ratio(dense: Sequence[float], row: Measurement) -> float | None:
    return min(dense) / row.median_ms if dense and row.median_ms else None


def _check(candidate: Candidate, limit: float, clock: Clock) -> Checked:
    """Build a form and compare its results with the right ones."""
    with end_after(limit) if math.isfinite(limit) else nullcontext():
        ready = candidate.build()
        start = clock()
        found = ready.results()
        check_s = clock() - start
        known = ready.candidate or candidate
        return Checked(known, ready, worst_error(found, known.expected()), check_s)


def _needed(candidate: Candidate, right: Sequence[Checked], clock: Clock) -> float:
    """Guess how long it takes to check a form and time it once.

    Dense ones take as long as the first, by how much slower products of their precision are here; sparse ones have
    right results of their own to compute besides. Of the first one only the operations are known.
    """
    row = candidate.row
    if not right:
        return 2 * (candidate.operations or 0.0) / operations_per_s(clock)
    first_s = right[0].check_s
    if row.form in DENSE_FORMS:
        return 2 * first_s * slowdown(row.precision, row.work, clock) if first_s > SHORT_S / 100 else 2 * first_s
    return 3 * first_s


def _name(candidate: Candidate) -> str:
    row = candidate.row
    return f"{row.form} {row.precision}" + ("" if row.form in DENSE_FORMS else f" at {row.density:.3g}")


def _seconds(seconds: float) -> str:
    return f"{max(seconds, 0):.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def _timed(checked: Checked, timing: Timing) -> Measurement:
    candidate = checked.candidate
    return replace(
        candidate.row,
        equal=True,
        error=checked.error,
        median_ms=1e3 * timing.median_s,
        spread=timing.spread if timing.rounds >= FEW_ROUNDS else None,
        rounds=timing.rounds,
        gflops_per_s=_rate(candidate.operations, timing),
        gbytes_per_s=_rate(candidate.bytes, timing),
    )


def _rate(amount: float | None, timing: Timing) -> float | None:
    return None if amount is None else 1e-9 * amount / timing.median_s
