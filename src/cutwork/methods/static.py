"""A mask chosen once."""

from dataclasses import dataclass
from typing import ClassVar, final

from cutwork.methods.base import Method, View, project_by
from cutwork.methods.scores import Score
from cutwork.sparsity.numbers import Mask


@final
@dataclass(frozen=True)
class Static(Method):
    """Keep the first mask to the end. On `shuffled:B` this is SSB, static shuffled blocks."""

    moves: ClassVar[bool] = False

    def start(self, view: View, init: Score) -> Mask:
        return project_by(view, init)

    def due(self, step: int) -> bool:
        return False

    def move(self, view: View) -> Mask:
        return view.unmoved

    @property
    def needs_gradient(self) -> bool:
        return False

    @property
    def dense_gradient_share(self) -> float:
        return 0.0
