"""How the learning rate goes over a run, as a function of the step alone: a resumed run needs no state of it."""

import math
from collections.abc import Callable

from cutwork.lab.training import Optimizing


def rate_at(step: int, *, steps: int, steps_of_epoch: int, given: Optimizing) -> float:
    """Return by what the learning rate is multiplied at a step, counted from 0.

    After the warm-up, which is no part of it, cosine and linear fall to `lr_min` at the end of the run, and epochs of
    step and exponential are counted from the end of the warm-up.

    >>> given = Optimizing(lr=1.0, schedule="step", milestones=(2,), gamma=0.1, warmup=1)
    >>> [round(rate_at(step, steps=8, steps_of_epoch=2, given=given), 3) for step in range(8)]
    [0.01, 0.505, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1]
    """
    warm = round(given.warmup * steps_of_epoch)
    if step < warm:
        return given.warmup_from + (1 - given.warmup_from) * step / warm
    return _SHAPES[given.schedule](step - warm, max(1, steps - warm), steps_of_epoch, given)


def _constant(step: int, steps: int, steps_of_epoch: int, given: Optimizing) -> float:
    return 1.0


def _cosine(step: int, steps: int, steps_of_epoch: int, given: Optimizing) -> float:
    least = given.lr_min / given.lr
    return least + (1 - least) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def _linear(step: int, steps: int, steps_of_epoch: int, given: Optimizing) -> float:
    least = given.lr_min / given.lr
    return least + (1 - least) * (1 - min(1.0, step / steps))


def _step(step: int, steps: int, steps_of_epoch: int, given: Optimizing) -> float:
    epoch = step / steps_of_epoch
    if given.milestones:
        return given.gamma ** sum(epoch >= milestone for milestone in given.milestones)
    return given.gamma ** (epoch // given.step_size)


def _exponential(step: int, steps: int, steps_of_epoch: int, given: Optimizing) -> float:
    return given.gamma ** (step // steps_of_epoch)


_SHAPES: dict[str, Callable[[int, int, int, Optimizing], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "step": _step,
    "exponential": _exponential,
}
