"""What every method says: how layers hold their masks, in which steps the masks move, and where to."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Self, TypeGuard, final

import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from cutwork.methods.schedules import Schedule, cosine
from cutwork.methods.scores import (
    BY_UNIT,
    ENTRYWISE,
    NEED_NO_GRADIENT,
    ZERO_AT_ZERO,
    Score,
    compare_with_lines,
    gradient,
    relative_gradient,
)
from cutwork.ops.topology import Topology
from cutwork.patterns import Pattern
from cutwork.patterns.base import comparable
from cutwork.patterns.density import check_density
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.fixed import Fixed
from cutwork.sparsity.gradient import all_finite
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.numbers import Mask, Numbers, pool_rows

Steps = int | float


@final
@dataclass(frozen=True)
class View:
    """One layer as a method sees it at one step.

    `weight`, `mask` and `grad` are matrices `[out, in]`; `grad` is the gradient of the whole weight, in a move of a
    method that needs it. A compressed layer makes them when they are read. Who asks for `kept` and `units`, on the grid
    of the pattern, and returns what `keep` or `exchange` makes of them, moves a mask at the cost of what it keeps.

    `layout` says how the weight lies in the layer; `numbers` are what it holds; `learned` are the scores that train
    beside the weight, if any; and `is_last` tells the last of the sparse layers, which some methods spare.
    """

    pattern: Pattern
    density: float
    layout: Layout
    numbers: Numbers
    learned: Tensor | None
    step: int
    generator: Generator
    is_last: bool

    @property
    def weight(self) -> Tensor:
        """Return the whole weight."""
        return self.numbers.weight

    @property
    def mask(self) -> Tensor:
        """Return the mask."""
        return self.numbers.mask

    @property
    def grad(self) -> Tensor | None:
        """Return the gradient of the whole weight, if there is one."""
        grad = self.numbers.whole_gradient
        if grad is not None:
            self._check_gradient(all_finite(grad))
        return grad

    @property
    def has_gradient(self) -> bool:
        """Say whether there is a gradient of the whole weight, without forming it."""
        return self.numbers.gradient is not None

    @property
    def unmoved(self) -> Mask:
        """Return the mask as it is, for a method that leaves it so."""
        return self.numbers.held

    @property
    def kept(self) -> Tensor:
        """Return which units the mask keeps, on the grid of the pattern."""
        tiles = self._tiles_of_units
        return self.pattern.units(self.mask) if tiles is None else tiles.kept

    def units(self, score: Score) -> Tensor:
        """Score the units, on the grid of the pattern."""
        if score in BY_UNIT:
            return self._draw(score)
        if score is relative_gradient:
            return compare_with_lines(self.units(gradient))
        tiles = self._tiles_of_units
        return self.pattern.pool(comparable(self.score(score))) if tiles is None else self._score(tiles, score)

    def keep(self, units: Tensor) -> Mask:
        """Return the mask that keeps these units."""
        if self._tiles_of_units is None:
            return self.pattern.spread(units, self.layout.matrix_shape)
        return self.numbers.keeping(units)

    def choose(self, units: Tensor, density: float) -> Mask:
        """Return the mask of a density that keeps the units with the largest scores."""
        return self.keep(self.pattern.select(units, self.pattern.count(self.layout.matrix_shape, density)))

    def exchange(self, drop: Score, grow: Score, fraction: float) -> Mask:
        """Return the mask after dropping a fraction of its units, the lowest in `drop`, and growing as many."""
        if self.pattern.tiling is not None and self.pattern.tiling.exchange is not None:
            return self._exchange_entries(self.pattern.tiling.exchange, drop, grow, fraction)
        scores = {score: self.units(score) for score in dict.fromkeys((drop, grow))}
        return self.keep(self.pattern.exchange(self.kept, scores[drop], scores[grow], fraction))

    def under(self, mask: Mask) -> "View":
        """Return the same layer, as if it had this mask."""
        return replace(self, numbers=self.numbers.under(mask))

    def score(self, score: Score) -> Tensor:
        """Score the weights; what chance draws, or compares whole units, is one number for each unit."""
        if score in BY_UNIT or score is relative_gradient:
            return self.pattern.spread(self.units(score), self.layout.matrix_shape)
        return score(self.weight, self.grad, self.generator)

    @property
    def _tiles_of_units(self) -> Topology | None:
        return self.numbers.tiles if self.pattern.units_are_tiles else None

    def _draw(self, score: Score) -> Tensor:
        tiles = self._tiles_of_units
        units = self.weight.new_empty(self.pattern.grid(self.weight.shape)) if tiles is None else tiles.kept
        return score(units, None, self.generator)

    def _score(self, tiles: Topology, score: Score) -> Tensor:
        if score not in ENTRYWISE:
            scores = self.score(score)
            return comparable(pool_rows(tiles, lambda part: part, scores))
        by_gradient = score not in NEED_NO_GRADIENT
        units = self.numbers.pool(score, by_gradient=by_gradient, of_zeros=score not in ZERO_AT_ZERO)
        if by_gradient:
            self._check_gradient(all_finite(units))
        return comparable(units)

    def _exchange_entries(self, exchange: Callable[..., Topology], drop: Score, grow: Score, fraction: float) -> Mask:
        tiles = self.numbers.tiles
        assert tiles is not None
        scores = self._score_all(grow)

        def score_kept() -> Tensor:
            if drop is grow or drop not in ENTRYWISE:
                return tiles.gather(scores if drop is grow else self._score_all(drop))
            return comparable(self.numbers.score_kept(drop, by_gradient=drop not in NEED_NO_GRADIENT))

        return self.numbers.as_held(exchange(tiles, score_kept, scores, fraction))

    def _score_all(self, score: Score) -> Tensor:
        if score not in ENTRYWISE:
            return comparable(self.score(score))
        by_gradient = score not in NEED_NO_GRADIENT

        def score_part(weight: Tensor, grad: Tensor | None) -> Tensor:
            scores = score(weight, grad, None)
            if not by_gradient:
                return comparable(scores)
            self._check_gradient(all_finite(scores))
            return scores

        return self.numbers.score_all(score_part, by_gradient=by_gradient, of_zeros=score not in ZERO_AT_ZERO)

    def check_gradient(self) -> None:
        """Raise ValueError where the mask cannot move by the gradient; parts are checked as they are formed."""
        self._check_gradient(self.numbers.gradient is None or self.numbers.gradient.is_finite())

    def _check_gradient(self, is_finite: bool) -> None:
        if not is_finite:
            raise ValueError(
                f"the gradient of step {self.step} is not finite, so the mask cannot move; lower the learning rate, or "
                "scale the loss with torch.amp.GradScaler"
            )


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
    def start(self, view: View, init: Score) -> Mask:
        """Return the first mask."""

    @abstractmethod
    def due(self, step: int) -> bool:
        """Say whether this step ends in a move."""

    def share_out(self, step: int, views: Iterable[View]) -> Sequence[float] | None:
        """Return how dense each layer is to be after a move in which they compete; None where each has its own density.

        It is asked before the layers move, and what it returns is the `density` that `move` finds in their views.
        `views` forms one layer after the other, without a gradient.
        """
        return None

    @abstractmethod
    def move(self, view: View) -> Mask:
        """Return the mask after a step that is due."""

    def prepare(self, sparsity: Sparsity, trained: Parameter, steps_done: int) -> None:  # noqa: B027
        """Tell what holds the mask of a layer what else changes with time, before the step after these."""

    @property
    @abstractmethod
    def needs_gradient(self) -> bool:
        """Say whether a move looks at the gradient outside the mask."""

    def reads_gradient(self, step: int) -> bool:
        """Say whether this step ends in a move that looks at the gradient outside the mask."""
        return self.needs_gradient and self.due(step)

    @property
    @abstractmethod
    def dense_gradient_share(self) -> float:
        """Return in which share of the steps the gradient of the whole weight is computed."""

    @property
    def takes_first_mask(self) -> bool:
        """Say whether training may begin with a mask that somebody else has chosen."""
        return True

    @property
    def first_score(self) -> Score | None:
        """Return the score that first masks go by unless somebody names one; None to go by how the weights look."""
        return None

    @property
    def replaces_update(self) -> bool:
        """Say whether a move stands in for the update of its step, in which the optimizer then changes nothing."""
        return False

    @property
    def sparse_span(self) -> tuple[Steps, Steps | None]:
        """Return from which step to which layers are sparse; before and after it every mask is whole."""
        return 0, None

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


def project_by(view: View, score: Score, density: float | None = None) -> Mask:
    """Return the mask of the highest scores."""
    return view.choose(view.units(score), view.density if density is None else density)


def rank_within(view: View, units: Tensor) -> Tensor:
    """Return scores of units that rank all that the mask does not keep below all that it keeps."""
    return torch.where(view.kept, units, -torch.inf)


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


def check_across_layers(method: Method, *, across_layers: bool, drop: Score) -> None:
    """Raise ValueError where layers would have to be compared by gradients, which are formed one at a time."""
    if across_layers and needs_gradient(drop):
        raise ValueError(
            f"{type(method).__name__}(across_layers=True, drop={getattr(drop, '__name__', drop)}) compares layers, of "
            "which only one at a time has its gradient formed; drop by cutwork.magnitude or cutwork.random"
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
