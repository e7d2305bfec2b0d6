"""The mask of one layer, and what each step of training does with it."""

from abc import abstractmethod
from collections.abc import Callable, Collection, MutableMapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.patterns import Pattern
from cutwork.sparsity.estimate import GAIN_OF_SQUARES, Energies, measure_energies, why_not_estimate
from cutwork.sparsity.gradient import DenseGradient
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.numbers import Mask, Numbers

# What optimizers remember of one parameter, by their names for it.
States = Sequence[MutableMapping[str, Any]]


class Sparsity(nn.Module):
    """The mask of one layer: the submodule `sparsity` of every sparse layer.

    A sparsifier takes it through training, in this order, and hands it `trained`, the parameter that the layer trains:
    the weight in dense storage, the values of the kept units in compressed storage.

        follow(needs_gradient=...)            a sparsifier is attached; will it ever ask for the dense gradient?
        expect_gradient(trained, on)          the coming step ends in a move that looks at the dense gradient, or not
        expect_drops(trained, rate, seed)     the coming step leaves out some of what is kept, if there is drop-connect
        observe(x, y, channel_dim)            a forward pass: the layer was used, and this is what it read and returns
        before_update(trained, loss_scale, learning_rate)
                                              the gradient is complete: returns the dense one, if expected
        after_update(trained)                 the optimizer has written: the parameter goes back into its legal form
        numbers(trained, gradient)            a method is about to choose another mask, and looks at these
        condense(mask), move(...)             it has chosen
        release(trained)                      the sparsifier is detached

    The dense gradient is that of the whole weight, also where the mask is zero. A layer whose mask is not fixed has it
    anyway, and does nothing to get it.
    """

    # Whether two small parameters, `energy_in` and `energy_out`, estimate the dense gradient.
    estimate = False
    energy_in: nn.Parameter
    energy_out: nn.Parameter
    # How loud the gradient outside the mask is in the coming step, zero if nobody asks: as a number, so that no step
    # has to ask a device for it, and in a buffer, for compiled code.
    _gain: float
    gain: Tensor
    # Whether some units are left out in training; by what each number is multiplied for that in the coming step; and at
    # which rate, and by which chance. No buffer: copies have none, and averages go through the buffers of both at once.
    drops: bool
    gate: Tensor
    _drawn: tuple[float, int]

    def __init__(self, *, layout: Layout, pattern: Pattern, density: float) -> None:
        super().__init__()
        self.layout = layout
        self.pattern = pattern
        self.density = density
        self.was_used = False
        # Whether a state dict has changed the size of the trained parameter, of which an optimizer may know nothing.
        self.was_resized = False
        self.drops = False
        # Whether a sparsifier is attached, and whether it will ever ask for the dense gradient.
        self.is_followed = False
        self.needs_gradient = False

    @property
    @abstractmethod
    def mask(self) -> Tensor:
        """Return the mask, a plain bool tensor shaped like the weight."""

    @abstractmethod
    def mask_matrix(self) -> Tensor:
        """Return the mask as a matrix."""

    @abstractmethod
    def matrix(self, tensor: Tensor) -> Tensor:
        """Return the whole matrix `[out, in]` that a tensor shaped like the trained parameter stands for."""

    @final
    def follow(self, *, needs_gradient: bool) -> None:
        """Take note that a sparsifier is attached, and whether it will ever ask for the dense gradient."""
        self.was_used = False
        self.is_followed, self.needs_gradient = True, needs_gradient

    @final
    def release(self, trained: nn.Parameter) -> None:
        """Take note that no sparsifier is attached any more."""
        self.is_followed = self.needs_gradient = self.drops = False
        self.expect_gradient(trained, False)

    @abstractmethod
    def expect_gradient(self, trained: nn.Parameter, on: bool) -> None:
        """Say whether the coming step has to bring the dense gradient."""

    @final
    def expect_drops(self, trained: nn.Parameter, rate: float, seed: int) -> None:
        """Leave out each unit that is kept with a probability in the coming step; the others make up for it."""
        if not self.drops:
            self.gate = torch.ones((), dtype=trained.dtype, device=self.gain.device)
        self.drops, self._drawn = True, (rate, seed)
        self._renew_gate()

    @final
    def leave_out(self, numbers: Tensor, *, is_training: bool) -> Tensor:
        """Return what a layer multiplies with, of its kept numbers, without the units left out in this step."""
        return numbers * self.gate if self.drops and is_training else numbers

    @final
    def _renew_gate(self) -> None:
        """Draw which units are left out; whoever changes the mask calls it."""
        if not self.drops:
            return
        rate, seed = self._drawn
        generator = torch.Generator().manual_seed(seed)
        gate = self._make_gate(lambda number: (torch.rand(number, generator=generator) >= rate).double() / (1 - rate))
        if self.gate.shape == gate.shape:
            # In place, so that compiled code goes on with the tensor it knows.
            self.gate.copy_(gate)
        else:
            self.gate = gate.to(self.gate)

    @abstractmethod
    def _make_gate(self, draw: Callable[[int], Tensor]) -> Tensor:
        """Return what the kept numbers are multiplied by: a number drawn for each unit, in the order of the index."""

    @final
    def note_use(self) -> None:
        """Remember that the layer was called, or its weight was read through the mask."""
        # To set an attribute of a module takes as long as a small product; compiled code must not look at it.
        if torch.compiler.is_compiling() or not self.was_used:
            self.was_used = True

    @final
    def observe(self, x: Tensor, y: Tensor, channel_dim: int) -> Tensor:
        """Return the layer's output `y` for the input `x`; in backward, measure both if that gives the estimate."""
        self.note_use()
        if not self.is_observing:
            return y
        return measure_energies(y, x, (self.energy_in, self.energy_out), self.gain, channel_dim)

    @property
    def is_observing(self) -> bool:
        """Say whether `observe` has to see what the product itself reads and returns."""
        return self.estimate and torch.is_grad_enabled()

    @abstractmethod
    def before_update(self, trained: nn.Parameter, loss_scale: float, learning_rate: float) -> DenseGradient | None:
        """Return the dense gradient, if it was expected, and leave `trained.grad` fit for the optimizer.

        The optimizer will update the parameter at this learning rate, and finds the gradient of the loss times
        `loss_scale`.
        """

    @abstractmethod
    def after_update(self, trained: nn.Parameter) -> None:
        """Put the parameter, just updated, back into its legal form."""

    @abstractmethod
    def numbers(self, trained: nn.Parameter, gradient: Any) -> Numbers:
        """Return what a method looks at; the gradient is what `before_update` has returned."""

    @abstractmethod
    def condense(self, mask: Mask) -> Any:
        """Return a mask in the form in which it waits for `move`."""

    @abstractmethod
    def resizes(self, condensed: Any) -> bool:
        """Say whether a move to this mask would change the size of the trained parameter."""

    @abstractmethod
    def reorders(self, condensed: Any) -> bool:
        """Say whether after a move to this mask a place in the trained parameter would belong to another weight."""

    @abstractmethod
    def move(self, condensed: Any, trained: nn.Parameter, states: States, sizes: Collection[str] = ()) -> None:
        """Take over a mask; under a fixed one, what was not kept starts at zero, in the optimizers' states too.

        Only states that measure `sizes`, given by name, start at their mean over what was kept.
        """

    @abstractmethod
    def fits(self, trained: Tensor) -> bool:
        """Say whether the parameter, as far as it is here, is in its legal form."""

    def is_frozen(self, trained: Tensor) -> bool:
        """Say whether nothing trains that the mask could be chosen by; a frozen layer keeps its mask."""
        return not trained.requires_grad

    def learned_scores(self) -> Tensor | None:
        """Return the scores that train beside the weight and choose the mask, if there are any."""
        return None

    @final
    def restart(self, device: torch.device) -> None:
        """Make what no file holds, on a device: a layer may have come from the meta device."""
        self._gain = 0.0
        # Last, as in a copy: averages go through the buffers of both at once.
        self._buffers.pop("gain", None)
        self.register_buffer("gain", torch.zeros((), device=device), persistent=False)

    @property
    def energies(self) -> Energies | None:
        """Return the two parameters whose gradients estimate the dense one, if it is estimated."""
        return (self.energy_in, self.energy_out) if self.estimate else None

    @final
    def _expect_estimate(self, on: bool) -> None:
        if on and (reason := why_not_estimate(self.energies)):
            raise ValueError(f"a layer cannot estimate its dense gradient: {reason}")
        self._set_gain(GAIN_OF_SQUARES * on)

    @final
    def _set_gain(self, gain: float) -> None:
        if gain != self._gain:
            self._gain = gain
            self.gain.fill_(gain)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Do what `nn.Module` does, with the gate too."""
        super()._apply(fn, recurse)
        if self.drops:
            self.gate = fn(self.gate)
        return self

    def extra_repr(self) -> str:
        """Describe the mask in the representation of the model."""
        return f"{self.pattern}, density {self.mask.float().mean():.4g}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out that a sparsifier follows, and the gain and gate that it has set: nobody follows a copy."""
        # A tensor made for this moment could not be sent to another process: it would be gone before it is read.
        buffers = {name: buffer for name, buffer in self._buffers.items() if name != "gain"}
        held = {name: value for name, value in vars(self).items() if name != "gate"}
        return {**held, "_buffers": buffers, "is_followed": False, "needs_gradient": False, "drops": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make anew what a copy leaves out."""
        super().__setstate__(state)
        self.restart(next(self.buffers()).device)
