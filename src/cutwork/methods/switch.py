"""Dense training before or after sparse training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import Parameter

from cutwork.methods.base import Method, Steps, View
from cutwork.methods.scores import Score, magnitude
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.numbers import Mask


@final
@dataclass(frozen=True)
class Switch(Method):
    """Train with a method from step `sparse_from` on and densely before it; densely again after `dense_from`.

    `Switch(srste(), dense_from=0.7)` is the recipe that trains the first 70 % of the run sparse and the rest dense.
    """

    method: Method
    sparse_from: Steps = 0
    dense_from: Steps | None = None

    step_fields: ClassVar[Sequence[str]] = ("sparse_from", "dense_from")

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise TypeError(f"Switch({self.method!r}): pass a method, such as cutwork.RigL(...) or cutwork.srste()")

    def start(self, view: View, init: Score) -> Tensor:
        return torch.ones_like(view.mask) if self.sparse_from > 0 else self.method.start(view, init)

    def due(self, step: int) -> bool:
        return step in (self.sparse_from, self.dense_from) or (self._is_sparse(step) and self.method.due(step))

    def move(self, view: View) -> Mask:
        if view.step == self.dense_from:
            return torch.ones_like(view.mask)
        if view.step == self.sparse_from:
            return self.method.start(view, magnitude)
        return self.method.move(view)

    def _is_sparse(self, step: int) -> bool:
        return step > self.sparse_from and (self.dense_from is None or step < self.dense_from)

    @property
    def takes_first_mask(self) -> bool:
        return self.method.takes_first_mask

    @property
    def needs_gradient(self) -> bool:
        return self.method.needs_gradient

    @property
    def dense_gradient_share(self) -> float:
        return self.method.dense_gradient_share

    def hold(self, mask: Tensor, weight: Parameter, *, view: View) -> Sparsity:
        return self.method.hold(mask, weight, view=view)
