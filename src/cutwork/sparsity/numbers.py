"""The numbers of a layer as its method sees them: whole where somebody reads them so, pooled where units are scored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor

from cutwork.memory import take_memory
from cutwork.ops.passage import Passage
from cutwork.ops.topology import Topology
from cutwork.patterns import Pattern
from cutwork.patterns.base import widened
from cutwork.patterns.block import tile_means
from cutwork.sparsity.gradient import DenseGradient, GradientOfKept, Rows, WholeGradient

# A mask as a matrix, or as the index of the tiles that it keeps.
Mask = Tensor | Topology
# A score of a weight that looks at nothing but it and, if it is given, its gradient.
EntryScore = Callable[[Tensor, Tensor | None], Tensor]

# Rows are formed in strips of so many numbers, in which products are fast, and scored in pieces, which stay in a cache.
# The memory of both is used again: to take new memory costs a third of the product.
NUMBERS_AT_ONCE, SCORES_AT_ONCE = 2**21, 2**18


def as_matrix(mask: Mask) -> Tensor:
    """Return a mask as a matrix."""
    return mask if isinstance(mask, Tensor) else mask.to_mask()


class Numbers(ABC):
    """The weight, the mask and the gradient of one layer at one step.

    Where the pattern has tiles, `tiles` says which the mask keeps, and `pool` scores them without whole matrices. These
    are there for whoever reads them. Where groups of rows change, `score_kept` and `score_all` score single weights.
    """

    @property
    @abstractmethod
    def gradient(self) -> DenseGradient | None:
        """Return the dense gradient, if there is one."""

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """Return the whole weight."""

    @property
    @abstractmethod
    def mask(self) -> Tensor:
        """Return the mask as a matrix."""

    @property
    @abstractmethod
    def whole_gradient(self) -> Tensor | None:
        """Return the dense gradient as a matrix."""

    @property
    @abstractmethod
    def tiles(self) -> Topology | None:
        """Return which tiles the mask keeps, or None where the pattern has none."""

    @property
    @abstractmethod
    def held(self) -> Mask:
        """Return the mask in the form in which it is there."""

    @abstractmethod
    def keeping(self, kept: Tensor) -> Mask:
        """Return the mask that keeps other tiles of the same grid."""

    @abstractmethod
    def as_held(self, index: Topology) -> Mask:
        """Return another mask in the form in which this one is there."""

    @abstractmethod
    def pool(self, score: EntryScore, *, by_gradient: bool, of_zeros: bool) -> Tensor:
        """Return the mean score of each tile, on their grid.

        `by_gradient` says whether the score looks at the gradient, and `of_zeros` whether at nothing else, so that a
        weight of zero has one too.
        """

    @abstractmethod
    def score_kept(self, score: EntryScore, *, by_gradient: bool) -> Tensor:
        """Return the score of each weight in the tiles that the mask keeps, shaped like their values."""

    @abstractmethod
    def score_all(self, score: EntryScore, *, by_gradient: bool, of_zeros: bool) -> Tensor:
        """Return the score of each weight, as a matrix: by one gradient, also where it is exact at what is stored."""

    @abstractmethod
    def under(self, mask: Mask) -> "Numbers":
        """Return the same numbers under another mask."""


@final
class WholeNumbers(Numbers):
    """The numbers of a layer that stores its whole weight."""

    def __init__(self, pattern: Pattern, weight: Tensor, mask: Tensor, gradient: DenseGradient | None = None) -> None:
        self._pattern, self._weight, self._mask, self._gradient = pattern, weight, mask, gradient

    @property
    def gradient(self) -> DenseGradient | None:
        return self._gradient

    @property
    def weight(self) -> Tensor:
        return self._weight

    @property
    def mask(self) -> Tensor:
        return self._mask

    @cached_property
    def whole_gradient(self) -> Tensor | None:
        return None if self.gradient is None else self.gradient.rows(slice(None))

    @cached_property
    def tiles(self) -> Topology | None:
        tiling, (outputs, inputs) = self._pattern.tiling, self._mask.shape
        if tiling is None:
            return None
        order = None if tiling.order is None else tiling.order(self._mask)
        # A tile larger than the matrix is the matrix.
        return Topology.from_mask(self._mask, min(tiling.rows, outputs), min(tiling.columns, inputs), order)

    @property
    def held(self) -> Tensor:
        return self._mask

    def keeping(self, kept: Tensor) -> Tensor:
        assert self.tiles is not None
        return self.as_held(self.tiles.keeping(kept))

    def as_held(self, index: Topology) -> Tensor:
        return index.to_mask()

    def pool(self, score: EntryScore, *, by_gradient: bool, of_zeros: bool) -> Tensor:
        assert self.tiles is not None
        return pool_rows(self.tiles, *self._what_to_score(score, by_gradient))

    def score_kept(self, score: EntryScore, *, by_gradient: bool) -> Tensor:
        tiles, grad = self.tiles, self.whole_gradient if by_gradient else None
        assert tiles is not None
        return widened(score(tiles.gather(self._weight), None if grad is None else tiles.gather(grad)))

    def score_all(self, score: EntryScore, *, by_gradient: bool, of_zeros: bool) -> Tensor:
        return _score_rows(self._weight.shape, *self._what_to_score(score, by_gradient))

    def _what_to_score(self, score: EntryScore, by_gradient: bool) -> tuple[Any, ...]:
        """Return a score and the matrices that it is a score of."""
        if self.gradient is None or not by_gradient:
            return lambda weight: score(weight, None), self._weight
        return score, self._weight, self.gradient

    def under(self, mask: Mask) -> "WholeNumbers":
        return WholeNumbers(self._pattern, self._weight, as_matrix(mask), self.gradient)


@final
class KeptNumbers(Numbers):
    """The numbers of a layer that stores only the units in an index; the mask may keep fewer of these."""

    def __init__(
        self,
        pattern: Pattern,
        index: Topology,
        values: Tensor,
        gradient: GradientOfKept | None,
        tiles: Topology | None = None,
    ) -> None:
        self._pattern, self._index, self._values, self._gradient = pattern, index, values, gradient
        self._tiles = index if tiles is None else tiles

    @property
    def gradient(self) -> GradientOfKept | None:
        return self._gradient

    @cached_property
    def weight(self) -> Tensor:
        return self._index.scatter(self._values)

    @cached_property
    def mask(self) -> Tensor:
        return self._tiles.to_mask()

    @cached_property
    def whole_gradient(self) -> Tensor | None:
        if self.gradient is None:
            return None
        index, around = self._index, self.gradient.rows(slice(None))
        if self.gradient.has_exact_rows:
            return around
        return torch.where(index.to_mask(), index.scatter(self.gradient.kept(index)), around)

    @property
    def tiles(self) -> Topology:
        return self._tiles

    @property
    def held(self) -> Topology:
        return self._tiles

    def keeping(self, kept: Tensor) -> Topology:
        return self._tiles.keeping(kept)

    def as_held(self, index: Topology) -> Topology:
        return index

    def pool(self, score: EntryScore, *, by_gradient: bool, of_zeros: bool) -> Tensor:
        index, gradient = self._index, self.gradient if by_gradient else None
        if gradient is None or not of_zeros:
            return self._pool_kept(score, gradient)
        zero = self._values.new_zeros(())
        around = pool_rows(index, lambda part: score(zero, part), gradient)
        # What is equal in the rows must stay so: sums of the same numbers in another order differ.
        return around if gradient.has_exact_rows else torch.where(index.kept, self._pool_kept(score, gradient), around)

    def _pool_kept(self, score: EntryScore, gradient: GradientOfKept | None) -> Tensor:
        """Return the mean score of each unit that is stored, on the grid, and zero for the others."""
        scores = score(self._values, None if gradient is None else gradient.kept(self._index))
        return self._index.spread(self._index.means(widened(scores)))

    def score_kept(self, score: EntryScore, *, by_gradient: bool) -> Tensor:
        gradient = self._gradient if by_gradient else None
        scores = widened(score(self._values, None if gradient is None else gradient.kept(self._index)))
        return scores if self._tiles is self._index else Passage(self._index, self._tiles).carry(scores)

    def score_all(self, score: EntryScore, *, by_gradient: bool, of_zeros: bool) -> Tensor:
        index, gradient = self._index, self._gradient if by_gradient else None
        if gradient is None or not of_zeros:
            return index.scatter(widened(score(self._values, None if gradient is None else gradient.kept(index))))
        zero = self._values.new_zeros(())
        return _score_rows(index.shape, lambda part: score(zero, part), gradient)

    def under(self, mask: Mask) -> Numbers:
        if isinstance(mask, Topology) and mask.same_grid(self._index):
            return KeptNumbers(self._pattern, self._index, self._values, self.gradient, tiles=mask)
        whole = None if self.whole_gradient is None else WholeGradient(self.whole_gradient)
        return WholeNumbers(self._pattern, self.weight, self.mask, whole).under(mask)


def pool_rows(tiles: Topology, score: Callable[..., Tensor], *matrices: Tensor | DenseGradient) -> Tensor:
    """Return the mean score of each tile, on their grid; a score is of some matrices."""
    rows = tiles.rows

    def pick(start: int, stop: int) -> Rows:
        return tiles.outputs(start // rows, -(-stop // rows))

    pieces = _score_pieces(tiles.shape, rows, pick, score, matrices)
    return torch.cat([tile_means(piece, rows, tiles.columns) for piece in pieces])


def _score_rows(shape: Sequence[int], score: Callable[..., Tensor], *matrices: Tensor | DenseGradient) -> Tensor:
    """Return a matrix of scores, which are of some matrices."""
    pieces = _score_pieces(shape, 1, slice, score, matrices)
    first = next(pieces)
    scores, end = take_memory(tuple(shape), first.dtype, first.device), 0
    for piece in chain([first], pieces):
        begin, end = end, end + len(piece)
        scores[begin:end] = piece
    return scores


def _score_pieces(
    shape: Sequence[int],
    unit: int,
    pick: Callable[[int, int], Rows],
    score: Callable[..., Tensor],
    matrices: Sequence[Tensor | DenseGradient],
) -> Iterator[Tensor]:
    """Score whole groups of `unit` rows after each other; `pick` returns which rows some places mean."""
    outputs, inputs = shape
    step, size = (unit * max(1, limit // (unit * inputs)) for limit in (NUMBERS_AT_ONCE, SCORES_AT_ONCE))
    strips: Sequence[Tensor | None] = [None] * len(matrices)
    for start in range(0, outputs, step):
        rows = pick(start, min(start + step, outputs))
        formed = [
            matrix[rows] if isinstance(matrix, Tensor) else matrix.rows(rows, strip)
            for matrix, strip in zip(matrices, strips, strict=True)
        ]
        for pieces in zip(*(strip.split(size) for strip in formed), strict=True):
            yield widened(score(*pieces))
        strips = formed
