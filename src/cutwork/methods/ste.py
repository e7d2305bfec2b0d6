"""Masks chosen anew from the weight, which trains in full behind them."""

from dataclasses import dataclass
from typing import final

from torch import Tensor
from torch.nn import Parameter

from cutwork.methods.base import Method, View, check_every, check_scores, project_by
from cutwork.methods.scores import NEED_NO_GRADIENT, SCORES, Score, magnitude
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.numbers import Mask
from cutwork.sparsity.reprojected import Reprojected

TAKES = "pass cutwork.magnitude, cutwork.energy, cutwork.random or one of your own that looks at the weight alone"


@final
@dataclass(frozen=True)
class STE(Method):
    """Multiply with the best part of a weight that trains in full; every so many steps choose the part anew.

    The gradient goes through the choice as if it were not there. A `decay` above zero pulls the rest towards zero,
    which keeps the choice from flickering: that is SR-STE. It joins the gradient, as in the paper, which becomes
    `gradient + decay * weight` outside the mask. So an optimizer that divides by the size of the gradient, as Adam
    does, moves a weight by a whole step where the decay is all there is. With `decoupled=True` the optimizer sees
    nothing of it: after its update, `weight -= learning_rate * decay * weight` outside the mask, in the manner of
    AdamW. Under plain SGD that differs by the square of the learning rate only.

    `keep` sees the weight alone; by `energy` the tiles of `2:4-tile` keep a little more of the weight than by
    `magnitude`.

    Reference: Zhou et al., Learning N:M fine-grained structured sparse neural networks from scratch, 2021.
    """

    every: int = 1
    decay: float = 0.0
    keep: Score = magnitude
    decoupled: bool = False

    def __post_init__(self) -> None:
        check_every(self.every)
        check_scores(keep=self.keep)
        if self.decoupled and not self.decay:
            raise ValueError("decoupled=True says how the decay acts, but decay=0 is none; give a decay, such as 0.1")
        names = {score: name for name, score in SCORES.items() if score not in NEED_NO_GRADIENT}
        if self.keep in names:
            raise ValueError(
                f"keep={names[self.keep]} needs a gradient, but the mask is chosen by the weight behind it; {TAKES}"
            )

    def start(self, view: View, init: Score) -> Mask:
        self._check_score(view)
        return project_by(view, init)

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def move(self, view: View) -> Mask:
        return view.exchange(self.keep, self.keep, fraction=1)

    @property
    def first_score(self) -> Score:
        # The first move chooses all anew, and first weights are scaled to the first mask.
        return self.keep

    @property
    def needs_gradient(self) -> bool:
        return False

    @property
    def dense_gradient_share(self) -> float:
        return 1.0

    def hold(self, mask: Tensor, weight: Parameter, *, view: View) -> Sparsity:
        self._check_score(view)
        return Reprojected(
            mask,
            view.layout,
            pattern=view.pattern,
            density=view.density,
            decay=float(self.decay),
            decoupled=self.decoupled,
        )

    def _check_score(self, view: View) -> None:
        """Raise ValueError at once, not at the first move, where a score of somebody's own needs a gradient."""
        if self.keep in NEED_NO_GRADIENT:
            return
        try:
            view.score(self.keep)
        except Exception as error:
            raise ValueError(
                f"keep={getattr(self.keep, '__name__', self.keep)} fails without a gradient ({error}), but the mask is "
                f"chosen by the weight behind it; {TAKES}"
            ) from error


def srste(*, every: int = 1, decay: float = 2e-4, decoupled: bool = False) -> STE:
    """Return STE with the decay of its paper."""
    return STE(every=every, decay=decay, decoupled=decoupled)
