"""How much of what is kept each step of training leaves out."""

from dataclasses import dataclass
from numbers import Real
from typing import final

from cutwork.methods.schedules import Schedule, constant


@final
@dataclass(frozen=True)
class DropConnect:
    """The share of the kept units that each step leaves out, by chance, over a run of so many steps.

    `sparsify` makes one; a `Sparsifier` of a loaded model is given one.

    Reference: Wan et al., Regularization of neural networks using DropConnect, 2013.
    """

    share: Schedule
    steps: int | None

    def rate(self, steps_done: int) -> float:
        """Return with which probability the step after so many leaves a unit out."""
        return self.share(0.0 if self.steps is None else steps_done / self.steps)


def read_drop_connect(given: Schedule | float | None, steps: int | None) -> DropConnect | None:
    """Return what `sparsify` was given; raise where it is no share, or where a run has no length.

    >>> from cutwork import linear
    >>> read_drop_connect(linear(0.0, 0.5), steps=100).rate(50)
    0.25
    """
    if given is None:
        return None
    if not isinstance(given, Schedule) and (isinstance(given, bool) or not isinstance(given, Real)):
        raise TypeError(
            f"drop_connect={given!r} is neither a number nor a schedule; write 0.1, or cutwork.linear(0.0, 0.5)"
        )
    share = given if isinstance(given, Schedule) else constant(float(given))
    if not all(0 <= end < 1 for end in (share.start, share.end)):
        raise ValueError(f"drop_connect={given} is outside [0, 1); 0.1 leaves out a tenth of what is kept in each step")
    if share.shape != "constant" and steps is None:
        raise ValueError(f"drop_connect={given} changes over the run, whose length is missing; pass steps=...")
    return DropConnect(share, steps)
