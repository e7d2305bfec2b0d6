"""A run whose step takes a share of the dense model's time: pattern and density follow from measuring here."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

from cutwork.lab.processes import Processes
from cutwork.lab.records import Watch
from cutwork.lab.run_folder import RunFolder
from cutwork.lab.stopwatch import Stopwatch, Times
from cutwork.lab.training import Sparse, Training
from cutwork.patterns import parse
from cutwork.speed.proposal import DENSITIES, PATTERNS
from cutwork.text import in_columns

# Below that hardly any accuracy is left; what cannot be met there is refused.
LEAST = min(DENSITIES)
# Keeping more by less than this is worth neither a coarser pattern nor a measurement.
MORE = 1.05
WHAT = {"step": "a training step", "inference": "a forward pass"}

Measure = Callable[[Training], Times]


@final
@dataclass(frozen=True)
class Tried:
    """A pattern at a density, and what it was measured to take beside the dense model."""

    pattern: str
    density: float
    times: Times


@final
@dataclass(frozen=True)
class Choice:
    """The pattern and the density by which a budget is met with most weights left, and all that was tried.

    `obstacles` says of a pattern why the model cannot have it.
    """

    budget: float
    of: str
    chosen: Tried
    tried: tuple[Tried, ...]
    obstacles: dict[str, str]

    def __str__(self) -> str:
        """Write what was chosen, why, and what was tried, as a table."""
        times, chosen = self.chosen.times, self.chosen
        rows = [("pattern", "density", "dense", "sparse", "share"), *map(_cells, self.tried)]
        return "\n".join(
            [
                f"{WHAT[self.of]} may take {self.budget:g} of the dense model's {times.dense_s * 1e3:.3g} ms",
                *in_columns(rows, "<>>>>"),
                *(f"{pattern}: {reason}" for pattern, reason in self.obstacles.items()),
                f"chosen: {chosen.pattern} at density {chosen.density:g}, {_share(times)} of the dense model's time; "
                "of all that meets the budget it keeps most weights",
            ]
        )


def settle(training: Training, folder: RunFolder, watch: Watch | None) -> tuple[Training, str]:
    """Return a run's options with its budget made a pattern and a density, and why it is these.

    This is before processes join, as what belongs to a group cannot be measured alone. A run that was begun goes on
    with what was chosen then.
    """
    if training.sparse.budget is None:
        return training, ""
    if folder.is_begun:
        return as_begun(training, folder.read_config()), ""
    settled, choice = meet_budget(training, Stopwatch(training, Processes.alone(training.running.device)))
    if watch is not None:
        watch.tell(str(choice))
    return settled, str(choice)


def share(training: Training, why: str, processes: Processes) -> tuple[Training, str]:
    """Return the options, and why they are so, that the first process has; each must ask."""
    text, why = json.loads(processes.share(json.dumps([training.to_json(), why])))
    return Training.from_json(text), why


def as_begun(training: Training, begun: Training) -> Training:
    """Return options that have a budget with the pattern and density that a run, begun so before, chose for it."""
    if training.sparse.budget is None:
        return training
    return replace(training, sparse=_settled(training.sparse, begun.sparse.pattern, begun.sparse.density))


def meet_budget(training: Training, measure: Measure) -> tuple[Training, Choice]:
    """Return a run's options with the pattern and the density that meet its budget, and what was tried for it.

    Of each pattern the density is halved down between what meets the budget and what does not, beginning with more than
    the best pattern before it can keep. Of two that keep about as much the first, which is finer, is chosen.
    """
    given = training.sparse
    budget = _check(given)
    tried: list[Tried] = []
    obstacles: dict[str, str] = {}
    best: Tried | None = None

    def attempt(pattern: str, density: float | None) -> Tried:
        times = measure(replace(training, sparse=_settled(given, pattern, density)))
        own = parse(pattern).density
        tried.append(Tried(pattern, float(own) if density is None and own is not None else density or 0.0, times))
        return tried[-1]

    for pattern in _patterns(given):
        is_free = parse(pattern).density is None
        least = _rounded(MORE * best.density) if best else LEAST
        if is_free and least >= 1:
            continue
        try:
            first = attempt(pattern, least if is_free else None)
        except ValueError as error:
            obstacles[pattern] = str(error)
            continue
        if first.times.share > budget:
            continue
        found = _most(first, lambda density, pattern=pattern: attempt(pattern, density), budget) if is_free else first
        if best is None or found.density > best.density:
            best = found
    if best is None:
        raise ValueError(_out_of_reach(given, tried, obstacles))
    is_free = parse(best.pattern).density is None
    settled = _settled(given, best.pattern, best.density if is_free else None)
    return replace(training, sparse=settled), Choice(budget, given.budget_of, best, tuple(tried), obstacles)


def _most(least: Tried, attempt: Callable[[float], Tried], budget: float) -> Tried:
    """Return what keeps most within the budget, which `least` meets and the whole model does not."""
    meets, beyond = least, 1.0
    while beyond > MORE * meets.density:
        found = attempt(_rounded(math.sqrt(meets.density * beyond)))
        if found.times.share <= budget:
            meets = found
        else:
            beyond = found.density
    return meets


def _rounded(density: float) -> float:
    return float(f"{density:.3g}")


def _check(given: Sparse) -> float:
    budget: Any = given.budget
    if not isinstance(budget, int | float) or not 0 < budget < 1:
        raise ValueError(f"budget={budget!r}; give a share of the dense model's time, above 0 and below 1, such as 0.5")
    if given.member is not None:
        raise ValueError(
            f"budget={budget!r}: the member {given.member!r} is as large as the dense model's operations allow; leave "
            "one of them out"
        )
    return budget


def _patterns(given: Sparse) -> tuple[str, ...]:
    own = PATTERNS if given.pattern == "dense" else (given.pattern,)
    return tuple(str(parse(pattern)) for pattern in given.budget_patterns or own)


def _settled(given: Sparse, pattern: str, density: float | None) -> Sparse:
    return replace(given, pattern=pattern, density=density, budget=None, budget_of="step", budget_patterns=())


def _out_of_reach(given: Sparse, tried: list[Tried], obstacles: dict[str, str]) -> str:
    reasons = "".join(f"; {pattern}: {reason}" for pattern, reason in obstacles.items())
    if not tried:
        return f"no pattern can be measured for the budget{reasons}"
    best = min(tried, key=lambda each: each.times.share)
    return (
        f"{WHAT[given.budget_of]} cannot take {given.budget:g} of the dense model's time here: the best is "
        f"{_share(best.times)}, by {best.pattern} at density {best.density:g}; raise the budget to that, let more "
        f"layers be sparse (layers, ends), or offer other patterns (budget_patterns){reasons}"
    )


def _share(times: Times) -> str:
    return f"{'' if times.is_steady else '~'}{times.share:.2f}"


def _cells(tried: Tried) -> tuple[str, ...]:
    times = tried.times
    return (
        tried.pattern,
        f"{tried.density:g}",
        f"{times.dense_s * 1e3:.3g} ms",
        f"{times.sparse_s * 1e3:.3g} ms",
        _share(times),
    )
