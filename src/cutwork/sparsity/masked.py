"""Masks in dense storage: a mask in a buffer, beside a weight of full shape."""

from abc import abstractmethod
from collections.abc import Callable, Collection
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from cutwork.distributed import whole
from cutwork.patterns import Pattern
from cutwork.sparsity.base import Sparsity, States
from cutwork.sparsity.gradient import DenseGradient
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.numbers import Mask, WholeNumbers, as_matrix
from cutwork.sparsity.protected import plain, protect
from cutwork.sparsity.rest import Rest, can_be_watched


class Masked(Sparsity):
    """A mask beside a weight of full shape, in a buffer; `forward` makes the weight the effective one.

    The whole weight trains behind it, so every value of the weight is legal, and every step brings the whole gradient.
    `Fixed` says otherwise.
    """

    # The mask as others find it among the buffers, and as it is computed with; both have the same memory.
    _shown: Tensor
    _mask: Tensor
    # Of a layer that stays dense where nothing trains: what is known of its weight.
    rest: Rest | None = None

    def __init__(self, mask: Tensor, layout: Layout, *, pattern: Pattern, density: float) -> None:
        super().__init__(layout=layout, pattern=pattern, density=density)
        self._buffers["mask"] = layout.from_matrix(mask).clone()
        self._show()
        self.restart(mask.device)

    @property
    def mask(self) -> Tensor:
        """Return the mask, a plain bool tensor shaped like the weight."""
        if not torch.compiler.is_compiling() and (
            self._buffers["mask"] is not self._shown or getattr(self._shown, "was_exchanged", False)
        ):
            # Moved to another device, replaced by a loader, or exchanged while a transformation runs.
            self._show()
        return self._mask

    def _show(self) -> None:
        buffer = self._buffers["mask"]
        assert buffer is not None
        self._shown = protect(buffer, f"the mask of a layer in {self.pattern}", may_follow=True)
        self._buffers["mask"], self._mask = self._shown, plain(self._shown)

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight, zero outside the mask, and remember in `was_used` that it was asked for."""

    @final
    def rests(self, weight: Tensor | None) -> bool:
        """Say whether the weight may be read as it lies there: nothing trains, and it is zero outside the mask."""
        rest = self.rest
        # Compiled code could not look again when something was written.
        if rest is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        mask = self.mask
        if rest.lasts(weight, mask):  # pyrefly: ignore
            return rest.is_clean
        if not can_be_watched(weight, mask):  # pyrefly: ignore
            return False
        rest.note(weight, mask, is_clean=self.fits(weight))  # pyrefly: ignore
        return rest.is_clean

    @final
    def train(self, mode: bool = True) -> Self:
        """Look again at a weight that rests: somebody may have written to it in a way that PyTorch does not count."""
        if self.rest is not None:
            self.rest.forget()
        return super().train(mode)

    @final
    def matrix(self, tensor: Tensor) -> Tensor:
        """See a whole tensor shaped like the weight as a matrix."""
        return self.layout.to_matrix(whole(tensor.detach()))

    @final
    def mask_matrix(self) -> Tensor:
        """See the mask as a matrix."""
        return self.matrix(self.mask)

    def expect_gradient(self, trained: nn.Parameter, on: bool) -> None:
        """Do nothing: every step brings the whole gradient."""

    def before_update(self, trained: nn.Parameter, loss_scale: float, learning_rate: float) -> DenseGradient | None:
        """Leave the gradient as it is."""
        return None

    def after_update(self, trained: nn.Parameter) -> None:
        """Do nothing: every value of the weight is legal."""

    @final
    def numbers(self, trained: nn.Parameter, gradient: DenseGradient | None) -> WholeNumbers:
        """Return what a method looks at."""
        return WholeNumbers(self.pattern, self.matrix(trained), self.mask_matrix(), gradient)

    @final
    def condense(self, mask: Mask) -> Tensor:
        """Return the mask as a matrix."""
        return as_matrix(mask)

    @final
    def resizes(self, condensed: Tensor) -> bool:
        """Say no."""
        return False

    @final
    def reorders(self, condensed: Tensor) -> bool:
        """Say no."""
        return False

    def move(self, condensed: Tensor, trained: nn.Parameter, states: States, sizes: Collection[str] = ()) -> None:
        """Take over a mask."""
        self.set_mask(condensed)

    @final
    def set_mask(self, matrix: Tensor) -> None:
        """Take over a mask given as a matrix, in place."""
        self.mask.copy_(self.layout.from_matrix(matrix))
        self._renew_gate()

    @final
    def _make_gate(self, draw: Callable[[int], Tensor]) -> Tensor:
        """Return the gate as a whole weight, one outside the mask; without tiles each weight is a unit."""
        mask = self.mask_matrix()
        gate = torch.ones(mask.shape, dtype=self.gate.dtype, device=mask.device)
        tiles = WholeNumbers(self.pattern, mask, mask).tiles
        if tiles is None:
            return self.layout.from_matrix(gate.masked_scatter_(mask, draw(int(mask.sum())).to(gate)))
        drawn = draw(tiles.num_units).to(gate)[:, None, None].expand(-1, tiles.columns, tiles.rows)
        return self.layout.from_matrix(torch.where(mask, tiles.scatter(drawn), gate))

    @final
    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Do what `nn.Module` does, and go on with what has come."""
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._note_loaded()

    def _note_loaded(self) -> None:
        """Leave out units of the mask that has come."""
        self._renew_gate()

    def fits(self, trained: Tensor) -> bool:
        """Say yes: every value of the weight is legal."""
        return True

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Do what `nn.Module` does, and go on with the mask that comes out."""
        super()._apply(fn, recurse)
        self._show()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is in the buffers."""
        return {key: value for key, value in super().__getstate__().items() if key not in ("_shown", "_mask")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make anew what a copy leaves out."""
        super().__setstate__(state)
        self._show()
