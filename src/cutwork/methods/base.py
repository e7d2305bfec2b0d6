"""What every method says: how layers hold their masks, in which steps the masks move, and where to."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self, TypeGuard, final

import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from cutwork.methods.schedules import Schedule, cosine
from cutwork.methods.scores import BY_UNIT, NEED_NO_GRADIENT, Score
from cutwork.patterns import Pattern
from cutwork.patterns.density import check_density
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.fixed import Fixed
from cutwork.sparsity.layout import Layout

Steps = int | float


@final
@dataclass(frozen=True)
class View:
    """One layer as a method sees it at one step, everything as matrices `[out, in]`.

    `layout` says how the weight lies in the layer; `grad` is the gradient of the whole weight, in a move of a method
    that needs it; `learned` are the scores that train beside the weight, if any; and `is_last` tells the last of the
    sparse layers, which some methods spare.
    """

    pattern: Pattern
    density: float
    layout: Layout
    weight: Tensor
    mask: Tensor
    grad: Tensor | None
    learned: Tensor | None
    step: int
    generator: Generator
    is_last: bool

    def score(self, score: Score) -> Tensor:
        """Score the weights; chance draws one number for each unit, so that units cut by an edge are not favoured."""
        if score in BY_UNIT:
            units = score(self.weight.new_empty(self.pattern.grid(self.weight.shape)), None, self.generator)
            return self.pattern.spread(units, self.weight.shape)
        return score(self.weight, self.grad, self.generator)


def generator_for(seed: int, step: int, name: str) -> Generator:
    """Return the source of chance for one layer at one step, the same in every process."""
    return Generator().manual_seed(zlib.crc32(f"{seed}/{step}/{name}".encode()))


class Method(ABC):
    """When masks move in training, and where to. Steps count from 1; a move comes after the optimizer's update."""

    # Whether masks ever move.
    moves: ClassVar[bool] = True
    # The fields that may be written as a share of the whole run.
    step_fields: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def start(self, view: View, init: Score) -> Tensor:
        """Return the first mask."""

    @abstractmethod
    def due(self, step: int) -> bool:
        """Say whether this step ends in a move."""

    @abstractmethod
    def move(self, view: View) -> Tensor:
        """Return the mask after a step that is due."""

    @property
    @abstractmethod
    def needs_gradient(self) -> bool:
        """Say whether a move looks at the gradient outside the mask."""

    @property
    @abstractmethod
    def dense_gradient_share(self) -> float:
        """Return in which share of the steps the gradient of the whole weight is computed."""

    @property
    def takes_first_mask(self) -> bool:
        """Say whether training may begin with a mask that somebody else has chosen."""
        return True

    def hold(self, mask: Tensor, weight: Parameter, *, view: View) -> Sparsity:
        """Return the module that will hold the mask of a layer: unless a method says otherwise, fixed between moves."""
        return hold_fixed(mask, weight, view=view)

    @final
    def in_steps(self, total: int | None) -> Self:
        """Return the method with shares of the run turned into steps."""
        changes: dict[str, object] = {}
        for field in fields(self):  # pyrefly: ignore
            value = getattr(self, field.name)
            if isinstance(value, Method):
                changes[field.name] = value.in_steps(total)
            elif field.name in self.step_fields and is_share(value):
                changes[field.name] = _to_step(value, total, f"{type(self).__name__}({field.name}={value})")
        return replace(self, **changes)  # pyrefly: ignore


def hold_fixed(mask: Tensor, weight: Parameter, *, view: View, estimate: bool = False) -> Fixed:
    """Hold a mask that moves only when the method moves it."""
    return Fixed(
        mask,
        view.layout,
        pattern=view.pattern,
        density=view.density,
        estimate=estimate,
        dtype=weight.dtype,
    )


def project_by(view: View, score: Score, density: float | None = None) -> Tensor:
    """Return the mask of the highest scores."""
    return view.pattern.project(view.score(score), view.density if density is None else density)


def rank_within(view: View, scores: Tensor) -> Tensor:
    """Return scores that rank everything outside the mask below everything inside."""
    return torch.where(view.mask, scores, scores.min() - 1)


def falls_on(step: int, *, every: int, begin: Steps, until: Steps) -> bool:
    """Say whether a step is a multiple of `every` strictly between `begin` and `until`."""
    return begin < step < until and step % every == 0


def progress(step: int, *, begin: Steps, until: Steps) -> float:
    """Return how far a step has come from `begin` to `until`."""
    return (step - begin) / (until - begin)


def share_of_moves(every: int) -> float:
    """Return the share of steps spent on moves, of which there is one after `every` steps of training.

    So the paper of RigL counts what training costs: its moves are steps of their own, which change no weight.
    """
    return 1 / (every + 1)


def needs_gradient(*scores: Score) -> bool:
    """Say whether one of the scores looks at the gradient."""
    return any(score not in NEED_NO_GRADIENT for score in scores)


def is_share(steps: Any) -> TypeGuard[float]:
    """Say whether a number of steps is written as a share of the run; numbers of numpy count like those of Python."""
    return isinstance(steps, Real) and not isinstance(steps, Integral)


def check_every(every: int) -> None:
    """Raise ValueError unless `every` is a number of steps."""
    if not isinstance(every, Integral) or every < 1:
        raise ValueError(f"every={every}: a mask moves every so many steps; give a whole number, at least 1")


def check_span(method: Method, *, every: int, begin: Steps, until: Steps, at_end: bool = False) -> None:
    """Raise ValueError where a method never moves; shares of a run are checked when they have become steps."""
    check_every(every)
    if is_share(begin) or is_share(until):
        return
    first = (begin // every + 1) * every
    if begin < 0 or until <= begin or (first >= until and not at_end):
        raise ValueError(
            f"{type(method).__name__}(every={every}, begin={begin}, until={until}) never moves a mask: no multiple of "
            f"{every} lies between {begin} and {until}; make every smaller, or until larger (1.0 is the whole run)"
        )


def fraction_at(fraction: Schedule | float, share: float) -> float:
    """Return which fraction of the units is exchanged after a share of the time in which masks move.

    A number is where the cosine of the papers begins, which ends at zero: 0.3 is `cosine(0.3)`. That is what RigL's
    own code makes of its drop fraction, and every default here; to stay at a number is `constant(0.3)`.
    """
    return fraction(share) if isinstance(fraction, Schedule) else cosine(float(fraction))(share)


def check_fraction(fraction: Schedule | float) -> None:
    """Raise unless `fraction` is a schedule of shares, or a share."""
    is_number = isinstance(fraction, Real) and not isinstance(fraction, bool)
    if not isinstance(fraction, Schedule) and not is_number:
        raise TypeError(
            f"fraction={fraction!r} is neither a number nor a schedule; write 0.3, which falls to zero along a cosine, "
            "or cutwork.constant(0.3)"
        )
    ends = (fraction.start, fraction.end) if isinstance(fraction, Schedule) else (fraction,)
    if not all(0 <= end <= 1 for end in ends):
        raise ValueError(f"fraction={fraction} must be a share of the kept units, from 0 to 1, at its start and end")


def check_scores(**scores: Score) -> None:
    """Raise TypeError unless all of these are functions."""
    for name, score in scores.items():
        if not callable(score):
            raise TypeError(
                f"{name}={score!r} is no function; pass cutwork.magnitude, cutwork.random or one of your own"
            )


def check_start_density(density: float) -> None:
    """Raise unless this can be the density of a mask."""
    if not isinstance(density, Real):
        raise TypeError(f"start_density={density!r} is no number; write 1.0 to start with everything")
    check_density(density, "start_density")


def _to_step(share: float, total: int | None, written: str) -> int:
    if not 0 <= share <= 1:
        raise ValueError(f"{written} is a share of the run and must lie in [0, 1]; a number of steps is written as int")
    if total is None:
        raise ValueError(f"{written} is a share of the run; pass steps=... to sparsify(), or write a number of steps")
    return round(share * total)
