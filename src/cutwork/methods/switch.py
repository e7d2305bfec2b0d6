"""Dense training before or after sparse training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import Parameter

from cutwork.methods.base import Method, Steps, View, is_share
from cutwork.methods.scores import Score, magnitude
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.numbers import Mask


@final
@dataclass(frozen=True)
class Switch(Method):
    """Train with a method from step `sparse_from` on and densely before it; densely again after `dense_from`.

    `Switch(srste(), dense_from=0.7)` is the recipe that trains the first 70 % of the run sparse and the rest dense. It
    works with every method on every pattern, and ends in a dense model: what it saves is training. What becomes dense
    begins at zero where the method holds its masks fixed, and with what trained behind the mask where it does not.

    After a dense beginning the first mask keeps the largest weights, what `STE` would keep, or a supermask's largest
    scores. Steps of the method itself, such as its `begin`, count from the beginning of the run.

    Reference for the dense end: Hu et al., Accelerating transformer pre-training with 2:4 sparsity, 2024.
    """

    method: Method
    sparse_from: Steps = 0
    dense_from: Steps | None = None

    step_fields: ClassVar[Sequence[str]] = ("sparse_from", "dense_from")

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise TypeError(f"Switch({self.method!r}): pass a method, such as cutwork.RigL(...) or cutwork.srste()")
        begin, end = self.sparse_from, self.dense_from
        if begin < 0 or (end is not None and end <= begin and is_share(begin or end) == is_share(end)):
            raise ValueError(
                f"Switch(sparse_from={begin}, dense_from={end}) is never sparse: dense_from must come after "
                "sparse_from, and both after the beginning; leave dense_from out to stay sparse to the end"
            )

    def start(self, view: View, init: Score) -> Mask:
        return torch.ones_like(view.mask) if self.sparse_from > 0 else self.method.start(view, init)

    def due(self, step: int) -> bool:
        return step in (self.sparse_from, self.dense_from) or (self._is_sparse(step) and self.method.due(step))

    def reads_gradient(self, step: int) -> bool:
        # To become sparse takes the weights alone, and to become dense nothing.
        return self._is_sparse(step) and self.method.reads_gradient(step)

    def move(self, view: View) -> Mask:
        if view.step == self.dense_from:
            return torch.ones_like(view.mask)
        if view.step == self.sparse_from:
            return self.method.start(view, self.first_score or magnitude)
        return self.method.move(view)

    def share_out(self, step: int, views: Iterable[View]) -> Sequence[float] | None:
        return self.method.share_out(step, views) if self._is_sparse(step) else None

    def prepare(self, sparsity: Sparsity, trained: Parameter, steps_done: int) -> None:
        self.method.prepare(sparsity, trained, steps_done)

    def _is_sparse(self, step: int) -> bool:
        return step > self.sparse_from and (self.dense_from is None or step < self.dense_from)

    @property
    def sparse_span(self) -> tuple[Steps, Steps | None]:
        return self.sparse_from, self.dense_from

    @property
    def takes_first_mask(self) -> bool:
        return not self.sparse_from and self.method.takes_first_mask

    @property
    def first_score(self) -> Score | None:
        return self.method.first_score

    @property
    def replaces_update(self) -> bool:
        return self.method.replaces_update

    @property
    def needs_gradient(self) -> bool:
        return self.method.needs_gradient

    @property
    def dense_gradient_share(self) -> float:
        return self.method.dense_gradient_share

    def hold(self, mask: Tensor, weight: Parameter, *, view: View) -> Sparsity:
        return self.method.hold(mask, weight, view=view)
