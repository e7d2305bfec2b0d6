"""A batch norm that does the sum and the activation which follow it."""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from cutwork.ops.activations import NONE, activate
from cutwork.ops.batch_norm import AFTER_SUMS, NAME, batch_norm
from cutwork.ops.dispatch import KERNELS

KINDS: dict[type[nn.Module], tuple[int, ...]] = {
    nn.BatchNorm1d: (2, 3),
    nn.BatchNorm2d: (4,),
    nn.BatchNorm3d: (5,),
}


@final
class FusedBatchNorm(_NormBase):
    """A batch norm, and what follows it. It was an `nn.BatchNorm1d`, `2d` or `3d`, and has the same state.

    It is none of these any more, because code that replaces batch norms would lose what it does besides.
    """

    # The class that it was.
    plain_class: type[nn.Module]
    # The activation that it applies to what it returns.
    after: str = NONE

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return the activation of the normalised input plus the residual."""
        if input.dim() not in KINDS[self.plain_class]:
            raise ValueError(
                f"{self.plain_class.__name__} got an input of shape {list(input.shape)}; it must have "
                f"{' or '.join(map(str, KINDS[self.plain_class]))} dimensions"
            )
        count = input.numel() // max(1, input.shape[1])
        if not self._uses_batch() or count < 2 or not self._has_kernel(input, residual):
            # PyTorch's own is faster than our reference.
            y = self.plain_class.forward(self, input)  # pyrefly: ignore
            return activate(self.after, y if residual is None else y + residual)
        y, mean, var = batch_norm(input, self.weight, self.bias, eps=self.eps, after=self.after, residual=residual)
        if self.training and self.track_running_stats:
            self._track(mean, var, count)
        return y

    def extra_repr(self) -> str:
        """Describe it as the batch norm that it was, and what it does besides."""
        return f"{super().extra_repr()}, after={self.after}"

    def _uses_batch(self) -> bool:
        return self.training or self.running_mean is None

    def _has_kernel(self, x: Tensor, residual: Tensor | None) -> bool:
        if x.dtype != torch.float32 or (NAME, x.device.type) not in KERNELS:
            return False
        if residual is None:
            return True
        is_alike = residual.shape == x.shape and residual.dtype == x.dtype and residual.device == x.device
        return is_alike and self.after in AFTER_SUMS

    def _check_input_dim(self, input: Tensor) -> None:
        """Leave it to `forward`, which checks it first."""

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        tracked: Any = self.num_batches_tracked
        tracked.add_(1)
        share = 1.0 / tracked.to(mean.dtype) if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
            assert running is not None
            running.lerp_(now.to(running.dtype), share)


def fuse_norm(norm: nn.Module, after: str) -> None:
    """Let a batch norm do an activation, in place; the sum before it is handed to its `forward`."""
    norm.plain_class = type(norm)  # pyrefly: ignore
    norm.__class__ = FusedBatchNorm
    norm.after = after  # pyrefly: ignore
