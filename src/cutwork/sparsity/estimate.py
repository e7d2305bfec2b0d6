"""Estimating the dense gradient of a layer by the sizes of its inputs and of the gradients of its outputs."""

from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.distributed import whole
from cutwork.ops.dispatch import is_transformed
from cutwork.ops.topology import Topology
from cutwork.sparsity.gradient import GradientOfKept, Rows, all_finite

# Sums of squares travel as gradients, so quiet that no norm notices them; only their order matters. They are larger
# than gradients, so this is smaller than the gain of a gradient.
GAIN_OF_SQUARES = 2.0**-40

# Two parameters of a layer, whose gradients are the sums of squares of its inputs and of its outputs' gradients.
Energies = tuple[nn.Parameter, nn.Parameter]


def make_energies(inputs: int, outputs: int, *, dtype: torch.dtype, device: torch.device) -> Energies:
    """Return the energies of a layer, in the dtype of its weight, because FSDP2 wants one for all parameters."""
    # Only float16 is too narrow for sums of squares.
    dtype = torch.float32 if dtype == torch.float16 else dtype
    energy_in, energy_out = (nn.Parameter(torch.zeros(size, dtype=dtype, device=device)) for size in (inputs, outputs))
    return energy_in, energy_out


def why_not_estimate(energies: Energies | None) -> str:
    """Say why the gradients of these parameters cannot be sums of squares, and what to do; empty where they can."""
    if energies is None or energies[0].dtype != torch.float16:
        return ""
    return (
        "it was turned to float16 after sparsify(), too narrow for the sums of squares that estimate=True needs; call "
        "half() before sparsify()"
    )


def measure_energies(y: Tensor, x: Tensor, energies: Energies, gain: Tensor, channel_dim: int) -> Tensor:
    """Return `y`; in backward, the energies of `x` and of the gradient of `y` become gradients of the two vectors."""
    check_not_transformed()
    return _Energies.apply(y, x, *energies, gain, channel_dim)


@final
class EstimatedGradient(GradientOfKept):
    """The size of a dense gradient as the outer product of two vectors of norms."""

    has_exact_rows = True

    def __init__(self, norms_O: Tensor, norms_I: Tensor) -> None:
        self._norms_O, self._norms_I = norms_O, norms_I

    def is_finite(self) -> bool:
        """Say whether the norms are finite."""
        return all_finite(self._norms_O) and all_finite(self._norms_I)

    def rows(self, outputs: Rows, into: Tensor | None = None) -> Tensor:
        """Multiply some rows out."""
        return torch.outer(self._norms_O[outputs], self._norms_I)

    def kept(self, index: Topology) -> Tensor:
        """Return it at the units that are stored."""
        return index.outer(self._norms_O, self._norms_I)


def take_estimate(energies: Energies, columns: int) -> EstimatedGradient | None:
    """Return the estimate of a dense gradient that the gradients of two energies tell, and take these away."""
    energy_in, energy_out = energies
    if energy_out.grad is None:
        return None
    norms = []
    for energy in (energy_out, energy_in):
        norms.append(whole(torch.zeros_like(energy) if energy.grad is None else energy.grad).sqrt())
        energy.grad = None
    # A convolution reads a channel at every place of its kernel.
    return EstimatedGradient(norms[0], norms[1].repeat(columns // len(energy_in)))


def check_not_transformed() -> None:
    """Raise ValueError under torch.func, whose gradients never come to where a sparse layer looks for them."""
    if is_transformed():
        raise ValueError(
            "a sparse layer has to see the gradient outside its mask in this pass, and torch.func does not show it; "
            "use loss.backward(), or a copy of the model after bake(copy)"
        )


class _Energies(torch.autograd.Function):
    """Pass `y` on; in backward give the two energy parameters their sums of squares as gradients."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, energy_in: Tensor, energy_out: Tensor, gain: Tensor, channel_dim: int):
        ctx.save_for_backward(x, gain)
        ctx.channel_dim, ctx.num_inputs = channel_dim, len(energy_in)
        # Not a view, into which no activation in place could write.
        if torch.compiler.is_compiling():
            return y.clone()
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor):
        (grad_y,), (x, gain) = grad_outputs, ctx.saved_tensors
        energy_in, energy_out = (_sum_squares(tensor, ctx.channel_dim) * gain for tensor in (x, grad_y))
        # The groups of a convolution share one row of inputs.
        energy_in = energy_in.view(-1, ctx.num_inputs).sum(0)
        return grad_y, None, energy_in, energy_out, None, None


def _sum_squares(tensor: Tensor, channel_dim: int) -> Tensor:
    wide = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    others = [dim for dim in range(tensor.dim()) if dim != channel_dim % tensor.dim()]
    # A compiler may have assumed other strides than a convolution returns, so nothing is flattened here.
    return wide.square().sum(others) if others else wide.square()
