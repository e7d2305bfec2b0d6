"""How one layer holds its mask: fixed, projected from the weight, or learned."""

from abc import abstractmethod
from collections.abc import Callable, MutableMapping, Sequence
from functools import partial
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from cutwork.distributed import local, part_like, whole
from cutwork.ops.dispatch import is_transformed
from cutwork.patterns import Pattern, Shape
from cutwork.sparsity.matrix import from_matrix, matrix_shape, to_matrix
from cutwork.sparsity.protected import plain, protect
from cutwork.sparsity.rest import Rest, can_be_watched

# How loud the gradient outside the mask is in a step that listens to it. A power of two, so that scaling back is
# exact; so small that the norm of the gradient, and with it clipping, is what the kept weights alone give.
WHISPER = 2.0**-16
# Half precision has too few exponents for that; there the norm comes out up to a thousandth too large.
WHISPER_HALF = 2.0**-6
# Sums of squares are larger than gradients, and of them only the order matters.
WHISPER_ENERGY = 2.0**-40
# The buffer that tells compiled code how loud it is.
LEAK = "leak"

TOO_NARROW = (
    "a layer turned to float16 after sparsify() is too narrow for the sums of squares that estimate=True needs; call "
    "half() before sparsify()"
)

# Forms the gradient of a whole weight as a matrix, when it is called.
Heard = Callable[[], Tensor]
# What optimizers remember of one parameter, by their names for it.
States = Sequence[MutableMapping[str, Any]]


class Sparsity(nn.Module):
    """The mask of one layer and what is done with it: the submodule `sparsity` of every sparse layer.

    It is asked in terms of `trained`, the parameter that the layer trains: the weight in dense storage, the values of
    the kept units in compressed storage. A training step calls `watch`, then `hear` when the gradient is complete and
    `settle` when the parameter has been updated; the sparsifier calls `condense` and `move` to give it a new mask.
    """

    def __init__(self, *, pattern: Pattern, density: float, transposed: bool) -> None:
        super().__init__()
        self.pattern = pattern
        self.density = density
        self.transposed = transposed
        self.was_used = False
        # Whether a state dict has changed the size of the trained parameter, of which an optimizer may know nothing.
        self.was_resized = False
        # What a sparsifier that is attached says: that there is one, and whether it will ever call `listen`.
        self.is_followed = False
        self.may_listen = False

    @property
    @abstractmethod
    def mask(self) -> Tensor:
        """Return the mask, a plain bool tensor shaped like the weight."""

    @abstractmethod
    def watch(self, x: Tensor, y: Tensor, channel_dim: int) -> Tensor:
        """Return the layer's output `y` for the input `x`, having learned from both what `hear` will need."""

    @abstractmethod
    def listen(self, trained: nn.Parameter, on: bool) -> None:
        """Say whether the coming step has to find out the gradient outside the mask."""

    @abstractmethod
    def hear(self, trained: nn.Parameter, loss_scale: float) -> Heard | None:
        """Return what forms the dense gradient, if the step listened, and leave `trained.grad` fit for the update."""

    @abstractmethod
    def settle(self, trained: nn.Parameter) -> None:
        """Put the parameter, just updated, back into its legal form."""

    @abstractmethod
    def matrix(self, tensor: Tensor) -> Tensor:
        """Return the whole matrix `[out, in]` that a tensor shaped like the trained parameter stands for."""

    @abstractmethod
    def mask_matrix(self) -> Tensor:
        """Return the mask as a matrix."""

    @abstractmethod
    def condense(self, matrix: Tensor) -> Any:
        """Return a mask, given as a matrix, in the form in which it waits for `move`."""

    @abstractmethod
    def resizes(self, condensed: Any) -> bool:
        """Say whether a move to this mask would change the size of the trained parameter."""

    def reorders(self, condensed: Any) -> bool:
        """Say whether after a move to this mask a place in the trained parameter would be another weight's."""
        return False

    @abstractmethod
    def move(self, condensed: Any, trained: nn.Parameter, states: States) -> None:
        """Take over a mask; under a fixed one, what was not kept starts at zero, in the optimizers' states too."""

    @abstractmethod
    def fits(self, trained: Tensor) -> bool:
        """Say whether the parameter, as far as it is here, is in its legal form."""

    def is_frozen(self, trained: Tensor) -> bool:
        """Say whether nothing trains that the mask could be chosen by; a frozen layer keeps its mask."""
        return not trained.requires_grad

    def restart(self, device: torch.device) -> None:
        """Make on a device what is in no file, in a layer that came from the meta device."""

    def extra_repr(self) -> str:
        """Describe the mask in the representation of the model."""
        return f"{self.pattern}, density {self.mask.float().mean():.4g}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a copy that this step listens, and to whom: the copy follows no optimizer that would hear."""
        # A tensor made for this moment could not be sent to another process: it would be gone before it is read.
        buffers = {name: held for name, held in self._buffers.items() if name != LEAK}
        return {**vars(self), "_buffers": buffers, "is_followed": False, "may_listen": False}


class Masked(Sparsity):
    """A mask beside a weight of full shape, in a buffer; `forward` makes the weight the effective one."""

    # The mask as others find it among the buffers, and as it is computed with; both have the same memory.
    _shown: Tensor
    _mask: Tensor
    # Of a layer that stays dense where nothing trains: what is known of its weight.
    rest: Rest | None = None

    def __init__(self, mask: Tensor, shape: Shape, *, pattern: Pattern, density: float, transposed: bool) -> None:
        super().__init__(pattern=pattern, density=density, transposed=transposed)
        self._buffers["mask"] = from_matrix(mask, shape, transposed=transposed).clone()
        self._show()

    @property
    def mask(self) -> Tensor:
        """Return the mask, a plain bool tensor shaped like the weight."""
        if not torch.compiler.is_compiling() and (
            self._buffers["mask"] is not self._shown or getattr(self._shown, "was_exchanged", False)
        ):
            # Moved to another device, replaced by a loader, or for the time of a transformation.
            self._show()
        return self._mask

    def _show(self) -> None:
        held = self._buffers["mask"]
        assert held is not None
        self._shown = protect(held, f"the mask of a layer in {self.pattern}", may_follow=True)
        self._buffers["mask"], self._mask = self._shown, plain(self._shown)

    @abstractmethod
    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight, zero outside the mask, and remember in `was_used` to have been asked."""

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
        return to_matrix(whole(tensor.detach()), transposed=self.transposed)

    @final
    def mask_matrix(self) -> Tensor:
        """See the mask as a matrix."""
        return self.matrix(self.mask)

    @final
    def condense(self, matrix: Tensor) -> Tensor:
        """Return the mask as it is."""
        return matrix

    @final
    def resizes(self, condensed: Tensor) -> bool:
        """Say no."""
        return False

    @final
    def set_mask(self, matrix: Tensor) -> None:
        """Take over a mask given as a matrix, in place."""
        self.mask.copy_(from_matrix(matrix, self.mask.shape, transposed=self.transposed))

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


@final
class Fixed(Masked):
    """A mask that only the sparsifier moves. Outside it the weight is exactly zero, at rest as well as in use.

    The gradient is masked in backward. In a step that listens it is let through outside the mask too, in a whisper,
    so that data parallelism averages it and clipping does not notice; `hear` turns it up again. With `estimate` the
    dense gradient is never formed: its size is estimated by the outer product of the norms of the layer's inputs and
    of the gradients of its outputs, which travel as gradients of two small parameters. These have the `dtype` of the
    weight, because FSDP2 wants one for all; only float16 is too narrow for sums of squares.
    """

    leak: Tensor

    def __init__(
        self,
        mask: Tensor,
        shape: Shape,
        *,
        pattern: Pattern,
        density: float,
        transposed: bool,
        estimate: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(mask, shape, pattern=pattern, density=density, transposed=transposed)
        self.estimate = estimate
        # The same number twice: the buffer is what compiled code reads, the other spares a device a question each step.
        self.loudness = 0.0
        self.register_buffer(LEAK, torch.zeros((), device=mask.device), persistent=False)
        if estimate:
            inputs = shape[0] if transposed else shape[1]
            outputs = shape[1] if transposed else shape[0]
            dtype = torch.float32 if dtype == torch.float16 else dtype
            self.energy_in = nn.Parameter(torch.zeros(inputs, dtype=dtype, device=mask.device))
            self.energy_out = nn.Parameter(torch.zeros(outputs, dtype=dtype, device=mask.device))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, zero outside the mask, with the gradient masked or let through in a whisper."""
        self.was_used = True
        # On a CPU a product with a bool mask takes a third of the time of a selection; compiled code has one form.
        if self.estimate or not (self.loudness or torch.compiler.is_compiling()):
            return weight * self.mask
        # The difference is zero also where an average of weights over time still remembers what was dropped.
        return torch.where(self.mask, weight, (weight - weight.detach()) * self.leak)

    def watch(self, x: Tensor, y: Tensor, channel_dim: int) -> Tensor:
        """Return `y`; in backward, measure the energies of `x` and of the gradient of `y`."""
        if not self.estimate:
            return y
        return measure_energies(y, x, self.energy_in, self.energy_out, self.leak, channel_dim)

    def listen(self, trained: nn.Parameter, on: bool) -> None:
        """Open or close the way for the gradient outside the mask."""
        whisper = WHISPER_HALF if trained.dtype == torch.float16 else WHISPER
        if on and self.is_too_narrow:
            raise ValueError(TOO_NARROW)
        loudness = (WHISPER_ENERGY if self.estimate else whisper) * on
        if loudness != self.loudness:
            self.loudness = loudness
            self.leak.fill_(loudness)

    def hear(self, trained: nn.Parameter, loss_scale: float) -> Heard | None:
        """Return the gradient, or its estimate, if the step listened; mask `weight.grad`."""
        if not self.loudness:
            return None
        if self.estimate:
            repeat = self.mask[0].numel() // len(self.energy_in) if not self.transposed else 1
            return take_estimate(self.energy_out, self.energy_in, repeat)
        if trained.grad is None:
            return None
        mask = part_like(self.mask, trained.grad)
        heard = torch.where(mask, trained.grad, trained.grad / self.loudness)
        trained.grad.copy_(torch.where(mask, trained.grad, 0))
        return partial(self.matrix, heard)

    def fits(self, trained: Tensor) -> bool:
        """Say whether the part of the weight that is here is zero outside the mask."""
        return not local(torch.where(part_like(self.mask, trained), 0, trained.detach())).any()

    @property
    def is_too_narrow(self) -> bool:
        """Say whether sums of squares would overflow here."""
        return self.estimate and self.energy_in.dtype == torch.float16

    def settle(self, trained: nn.Parameter) -> None:
        """Zero the weight outside the mask, whatever the optimizer wrote there."""
        trained.mul_(part_like(self.mask, trained))

    def move(self, condensed: Tensor, trained: nn.Parameter, states: States) -> None:
        """Take over a mask; weights and optimizer state that were not kept start at zero."""
        old = self.mask.clone()
        self.set_mask(condensed)
        stay = old & self.mask
        for tensor in (trained, *per_entry(states, trained)):
            tensor.copy_(torch.where(part_like(stay, tensor), tensor, 0))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a copy that this step listens."""
        return {**super().__getstate__(), "loudness": 0.0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make anew what a copy leaves out."""
        super().__setstate__(state)
        self.restart(self.mask.device)

    def restart(self, device: torch.device) -> None:
        """Let compiled code find that it is quiet."""
        self._buffers[LEAK] = torch.zeros((), device=device)


@final
class Reprojected(Masked):
    """A mask chosen anew from the weight itself, which keeps its values outside and gets the whole gradient.

    The weight changes only in the optimizer's step, so that is when the sparsifier renews the mask; forward passes,
    accumulation and evaluation pay nothing for it. `decay` pulls the weights outside the mask towards zero (SR-STE).
    """

    def __init__(
        self, mask: Tensor, shape: Shape, *, pattern: Pattern, density: float, transposed: bool, decay: float = 0.0
    ) -> None:
        super().__init__(mask, shape, pattern=pattern, density=density, transposed=transposed)
        self.decay = decay

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, zero outside the mask; its gradient goes through unmasked."""
        self.was_used = True
        return weight + (weight * self.mask - weight).detach()

    def watch(self, x: Tensor, y: Tensor, channel_dim: int) -> Tensor:
        """Return `y`: there is nothing to learn here."""
        return y

    def listen(self, trained: nn.Parameter, on: bool) -> None:
        """Do nothing: every step gets the whole gradient."""

    def hear(self, trained: nn.Parameter, loss_scale: float) -> Heard | None:
        """Add the decay of the weights outside the mask to the gradient."""
        if trained.grad is None:
            return None
        if self.decay:
            outside = torch.where(part_like(self.mask, trained), 0, trained.detach())
            trained.grad.add_(outside.to(trained.grad.dtype), alpha=self.decay * loss_scale)
        return None

    def settle(self, trained: nn.Parameter) -> None:
        """Do nothing: every value of the weight is legal."""

    def move(self, condensed: Tensor, trained: nn.Parameter, states: States) -> None:
        """Take over a mask."""
        self.set_mask(condensed)

    def fits(self, trained: Tensor) -> bool:
        """Say yes: every value of the weight is legal."""
        return True


@final
class Learned(Masked):
    """A mask of the units with the largest learned scores; a score's gradient sums weight times gradient over its unit.

    `bits` puts the weight into 2**bits equal bins, numbered from -2**(bits-1), and multiplies with
    `shift + scale * bin`, both of which train unless `fixed_transform`; without a `transform` they start where the
    result is closest to the weight. The gradient goes through the binning unchanged.
    """

    def __init__(
        self,
        mask: Tensor,
        shape: Shape,
        *,
        pattern: Pattern,
        density: float,
        transposed: bool,
        scores: Tensor,
        score_range: tuple[float, float] | None = None,
        dense_weight_gradient: bool = False,
    ) -> None:
        super().__init__(mask, shape, pattern=pattern, density=density, transposed=transposed)
        self.scores = nn.Parameter(scores)
        self.score_range = score_range
        self.dense_weight_gradient = dense_weight_gradient
        self.bits = 0

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight times its mask, with a gradient for the scores behind the mask."""
        self.was_used = True
        if self.bits:
            weight = self._binned(weight)
        gate = self.mask.to(weight.dtype)
        if self.scores.requires_grad:
            spread = self.pattern.spread(self.scores, matrix_shape(weight.shape, transposed=self.transposed))
            spread = from_matrix(spread, weight.shape, transposed=self.transposed).to(weight.dtype)
            gate = gate + (spread - spread.detach())
        if self.dense_weight_gradient:
            return (weight - weight.detach()) + weight.detach() * gate
        return weight * gate

    def watch(self, x: Tensor, y: Tensor, channel_dim: int) -> Tensor:
        """Return `y`: there is nothing to learn here."""
        return y

    def listen(self, trained: nn.Parameter, on: bool) -> None:
        """Do nothing: every step gets the gradient of all scores."""

    def hear(self, trained: nn.Parameter, loss_scale: float) -> Heard | None:
        """Leave the gradients as they are."""
        return None

    def settle(self, trained: nn.Parameter) -> None:
        """Hold the scores in their range."""
        if self.score_range:
            self.scores.clamp_(*self.score_range)

    def move(self, condensed: Tensor, trained: nn.Parameter, states: States) -> None:
        """Take over a mask."""
        self.set_mask(condensed)

    def fits(self, trained: Tensor) -> bool:
        """Say yes: every value of the weight is legal."""
        return True

    def is_frozen(self, trained: Tensor) -> bool:
        """Say whether the scores do not train either."""
        return not (trained.requires_grad or self.scores.requires_grad)

    def bin_weight(
        self, weight: Tensor, bits: int, *, transform: tuple[float, float] | None, fixed_transform: bool
    ) -> None:
        """Multiply with binned weights from now on."""
        low, high = weight.detach().aminmax()
        scale = (high - low) / 2**bits
        shift = low + scale * (2 ** (bits - 1) + 0.5)
        if transform:
            shift, scale = (torch.tensor(value, dtype=weight.dtype, device=weight.device) for value in transform)
        self.bits = bits
        self.shift = nn.Parameter(shift.reshape(1), requires_grad=not fixed_transform)
        self.scale = nn.Parameter(scale.reshape(1), requires_grad=not fixed_transform)

    def _binned(self, weight: Tensor) -> Tensor:
        values = weight.detach()
        low, high = values.aminmax()
        width = ((high - low) / 2**self.bits).clamp(min=torch.finfo(values.dtype).tiny)
        bins = ((values - low) / width).floor().clamp(0, 2**self.bits - 1) - 2 ** (self.bits - 1)
        return bins * self.scale + self.shift + (weight - values)


def per_entry(states: States, trained: Tensor) -> list[Tensor]:
    """Return every tensor of any optimizer's state that has a number for each entry of the parameter."""
    values = [value for state in states for value in state.values()]
    return [value for value in values if isinstance(value, Tensor) and value.shape == trained.shape]


def measure_energies(
    y: Tensor, x: Tensor, energy_in: Tensor, energy_out: Tensor, loudness: Tensor, channel_dim: int
) -> Tensor:
    """Return `y`; in backward, the energies of `x` and of the gradient of `y` become gradients of the two vectors."""
    check_not_transformed()
    return _Energies.apply(y, x, energy_in, energy_out, loudness, channel_dim)


def check_not_transformed() -> None:
    """Raise ValueError under torch.func, whose gradients never come to where masks listen for them."""
    if is_transformed():
        raise ValueError(
            "a sparse layer has to see the gradient outside its mask in this pass, and torch.func does not show it; "
            "use loss.backward(), or a copy of the model after bake(copy)"
        )


def take_estimate(energy_out: nn.Parameter, energy_in: nn.Parameter, repeat: int = 1) -> Heard | None:
    """Return what forms the estimate of a dense gradient from the gradients of two energies, and take these away."""
    if energy_out.grad is None:
        return None
    norms = []
    for energy in (energy_out, energy_in):
        norms.append(whole(torch.zeros_like(energy) if energy.grad is None else energy.grad).sqrt())
        energy.grad = None
    return partial(torch.outer, norms[0], norms[1].repeat(repeat))


class _Energies(torch.autograd.Function):
    """Pass `y` on; in backward give the two energy parameters their sums of squares as gradients."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, energy_in: Tensor, energy_out: Tensor, loudness: Tensor, channel_dim: int
    ):
        ctx.save_for_backward(x, loudness)
        ctx.channel_dim, ctx.num_inputs = channel_dim, len(energy_in)
        # Not a view, into which no activation in place could write.
        if torch.compiler.is_compiling():
            return y.clone()
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor):
        (grad_y,), (x, loudness) = grad_outputs, ctx.saved_tensors
        energy_in, energy_out = (_sum_of_squares(tensor, ctx.channel_dim) * loudness for tensor in (x, grad_y))
        # The groups of a convolution share one row of inputs.
        energy_in = energy_in.view(-1, ctx.num_inputs).sum(0)
        return grad_y, None, energy_in, energy_out, None, None


def _sum_of_squares(tensor: Tensor, channel_dim: int) -> Tensor:
    wide = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    others = [dim for dim in range(tensor.dim()) if dim != channel_dim % tensor.dim()]
    # A compiler may have assumed other strides than a convolution returns, so nothing is flattened here.
    return wide.square().sum(others) if others else wide.square()
