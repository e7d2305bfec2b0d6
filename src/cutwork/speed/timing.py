"""How long several ways of doing the same thing take, measured side by side in one process."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import final

Run = Callable[[], object]
Clock = Callable[[], float]

# On a machine that is busy with something else the quartiles of the runs lie further apart.
STEADY_SPREAD = 0.1
# Something must be faster by this much: a smaller difference may be chance.
MARGIN = 1.03
# A first call, two that tell how long one takes, and a round of two.
CALLS_TO_TRY = 5


@final
@dataclass(frozen=True)
class Timing:
    """The median time of a call, in seconds, how far its runs lie apart, and how many there were.

    `spread` is the distance of the quartiles as a share of the median.
    """

    median_s: float
    spread: float
    rounds: int

    @classmethod
    def of(cls, times: list[float]) -> "Timing":
        """Return what the times of all rounds, at least one, come to."""
        return cls(median(times), spread_of(times), len(times))

    @property
    def is_steady(self) -> bool:
        """Say whether the runs agree well enough to believe differences of a tenth."""
        return self.spread <= STEADY_SPREAD


def measure(
    forms: Mapping[str, Run],
    *,
    seconds: float = 1.0,
    min_rounds: int = 5,
    max_rounds: int = 100,
    least_s: float = 2e-4,
    strict: bool = False,
    clock: Clock = perf_counter,
    times: dict[str, list[float]] | None = None,
) -> dict[str, Timing]:
    """Return the timing of each form, from rounds in which all take turns, in about `seconds` altogether.

    What slows the machine for a while then slows all forms. In a round a form runs once untimed, so that it finds the
    caches as it leaves them itself, then often enough to take `least_s`, which is long for the clock. Each round begins
    with another form. All forms get the same time, so a slow one takes part in fewer rounds, spread evenly over the
    rest, but never in fewer than `min_rounds`. With `strict` the time counts for more than the rounds: a slow form
    takes part in as many as its share allows, and one too slow even for that counts by its first run alone. `times`
    is filled while it measures, so that after an interruption what was measured until then is there.

    >>> timings = measure({"sum": lambda: sum(range(1000)), "pass": lambda: None}, seconds=0.01)
    >>> timings["pass"].median_s < timings["sum"].median_s
    True
    """
    if not forms:
        return {}
    if seconds <= 0 or min_rounds < 1:
        raise ValueError(f"seconds={seconds:g} and min_rounds={min_rounds}; give some time, and at least one round")
    max_rounds = max(min_rounds, max_rounds)
    share = seconds / len(forms)
    times = {} if times is None else times
    counts, rounds = {}, {}
    for name, form in forms.items():
        start = clock()
        # The first call may compile, allocate or fill caches.
        form()
        first_s = clock() - start
        if strict and CALLS_TO_TRY * first_s > share:
            times[name], rounds[name] = [first_s], 0
            continue
        count, call_s = _calls(form, least_s, clock)
        left = share - (clock() - start) if strict else share
        # One call more is for the untimed one.
        fitting = int(left / ((count + 1) * call_s))
        counts[name], rounds[name] = count, min(max(fitting, 1 if strict else min_rounds), max_rounds)
        times[name] = []
    for name in order_of_turns(rounds):
        times[name].append(_time(forms[name], counts[name], clock))
    return {name: Timing.of(taken) for name, taken in times.items()}


def order_of_turns(rounds: Mapping[str, int]) -> list[str]:
    """Return who runs when, if each name runs in so many rounds: evenly spread, and another one first in each.

    >>> order_of_turns({"a": 4, "b": 4, "c": 2})
    ['a', 'b', 'b', 'c', 'a', 'a', 'b', 'a', 'b', 'c']
    """
    names, most = list(rounds), max(rounds.values())
    turns = []
    for turn in range(most):
        first = turn % len(names)
        turns += [
            name
            for name in names[first:] + names[:first]
            if (turn + 1) * rounds[name] // most > turn * rounds[name] // most
        ]
    return turns


def _calls(form: Run, least_s: float, clock: Clock) -> tuple[int, float]:
    """Return how many calls take `least_s`, and how long one takes, about."""
    count = 1
    while (taken := count * _time(form, count, clock)) < least_s:
        # A clock that does not advance in so short a time says nothing: no more than ten times as many.
        count = min(math.ceil(1.2 * count * least_s / taken), 10 * count) if taken else 10 * count
    return count, taken / count


def _time(form: Run, calls: int, clock: Clock) -> float:
    """Return the mean time of a call, after one that does not count."""
    form()
    start = clock()
    for _ in range(calls):
        form()
    return (clock() - start) / calls


def spread_of(times: list[float]) -> float:
    """Return the distance of the quartiles as a share of the median."""
    if len(times) < 2:
        return 0.0
    lower, middle, upper = quantiles(times, n=4, method="inclusive")
    # A clock may measure no time at all for an empty function.
    return (upper - lower) / middle if middle else 0.0
