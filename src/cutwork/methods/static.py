"""A mask chosen once."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor
from torch.nn import Parameter

from cutwork.methods.base import Method, View, hold_fixed, project_by
from cutwork.methods.scores import Score
from cutwork.sparsity.base import Sparsity


@final
@dataclass(frozen=True)
class Static(Method):
    """Keep the first mask to the end. On `shuffled:B` this is SSB, static shuffled blocks."""

    moves: ClassVar[bool] = False

    def start(self, view: View, init: Score) -> Tensor:
        return project_by(view, init)

    def due(self, step: int) -> bool:
        return False

    def move(self, view: View) -> Tensor:
        return view.mask

    @property
    def needs_gradient(self) -> bool:
        return False

    @property
    def dense_gradient_share(self) -> float:
        return 0.0

    def hold(self, mask: Tensor, weight: Parameter, *, view: View, transposed: bool) -> Sparsity:
        return hold_fixed(mask, weight, view=view, transposed=transposed)
