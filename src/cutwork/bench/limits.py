"""Keeping a measurement within its time: guessing what would take far too long, and stopping what does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType

import torch
import torch.nn.functional as F

from cutwork.speed.timing import Clock

# Large enough for the clock, small enough to end soon where a CPU has no instructions for bf16.
TOKENS, WIDTH = 128, 512


class OutOfTimeError(BaseException):
    """Something took longer than it may; no `Exception`, so that no code on the way catches it."""


@contextmanager
def end_after(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError inside, as soon as Python runs again after so many seconds.

    Compiling and passes of many layers end that way, a single long call of a kernel does not. Only the main thread of a
    system with alarms can be interrupted; anything else runs to its end.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@cache
def slowdown(precision: str, work: str, clock: Clock) -> float:
    """Return how many times as long as in fp32 PyTorch's dense products take, from small ones of the same kind.

    Without instructions for bf16 some of them, above all gradients, are computed number by number.
    """
    if precision != "bf16":
        return 1.0
    works = ("forward", "dX", "dW") if work == "step" else (work,)
    return sum(_time_of(torch.bfloat16, one, clock) for one in works) / sum(
        _time_of(torch.float32, one, clock) for one in works
    )


@cache
def operations_per_s(clock: Clock) -> float:
    """Return how many operations a second PyTorch's dense products in fp32 do here if all threads have a core."""
    return torch.get_num_threads() * 2 * TOKENS * WIDTH**2 / _time_of(torch.float32, "forward", clock)


def _time_of(dtype: torch.dtype, work: str, clock: Clock) -> float:
    """Return how long a small product takes on one thread: several wait for each other on a busy machine."""
    x_MI, dy_MO, weight_OI = (
        torch.ones(shape, dtype=dtype) for shape in ((TOKENS, WIDTH), (TOKENS, WIDTH), (WIDTH, WIDTH))
    )
    run = {
        "forward": lambda: F.linear(x_MI, weight_OI),
        "dX": lambda: dy_MO @ weight_OI,
        "dW": lambda: dy_MO.T @ x_MI,
    }[work]
    times = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(3):
            start = clock()
            run()
            times.append(clock() - start)
    finally:
        torch.set_num_threads(threads)
    # A clock that sees nothing must not make a ratio of nothing.
    return max(min(times), 1e-9)
