"""How an amount changes with progress, a number from 0 to 1."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

Shape = Literal["constant", "linear", "cosine", "power", "exponential"]

SHAPES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda progress, rate: 1.0,
    "linear": lambda progress, rate: 1 - progress,
    "cosine": lambda progress, rate: (1 + math.cos(math.pi * progress)) / 2,
    "power": lambda progress, rate: (1 - progress) ** rate,
    "exponential": lambda progress, rate: math.exp(-rate * progress),
}


@final
@dataclass(frozen=True)
class Schedule:
    """A function of progress that goes from `start` towards `end`; make one with the functions of this module."""

    shape: Shape
    start: float
    end: float = 0.0
    rate: float = 1.0

    def __call__(self, progress: float) -> float:
        """Return the amount at a progress, which is held between 0 and 1."""
        progress = min(1.0, max(0.0, progress))
        return self.end + (self.start - self.end) * SHAPES[self.shape](progress, self.rate)


def constant(value: float) -> Schedule:
    """Return a schedule that stays where it is.

    >>> constant(0.3)(0.9)
    0.3
    """
    return Schedule("constant", value)


def linear(start: float, end: float = 0.0) -> Schedule:
    """Return a schedule along a straight line.

    >>> linear(1.0, 0.5)(0.5)
    0.75
    """
    return Schedule("linear", start, end)


def cosine(start: float, end: float = 0.0) -> Schedule:
    """Return a schedule along half a wave: slow, fast, slow.

    >>> round(cosine(0.3)(0.5), 3)
    0.15
    """
    return Schedule("cosine", start, end)


def cubic(start: float, end: float = 0.0) -> Schedule:
    """Return a schedule that falls fast at first, along (1 - progress) ** 3.

    >>> cubic(1.0, 0.2)(0.5)
    0.30000000000000004

    Reference: Zhu and Gupta, To prune, or not to prune, 2017.
    """
    return Schedule("power", start, end, rate=3)


def power(start: float, end: float = 0.0, *, rate: float) -> Schedule:
    """Return a schedule along (1 - progress) ** rate, the annealing that RigL calls exponential."""
    return Schedule("power", start, end, rate)


def exponential(start: float, end: float = 0.0, *, rate: float) -> Schedule:
    """Return a schedule along exp(-rate * progress).

    >>> exponential(1.0, rate=0.0)(1.0)
    1.0
    """
    return Schedule("exponential", start, end, rate)
