"""A fixed mask in compressed storage: the index of the units that are kept."""

from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from cutwork.layers.listening import Ear, Pair, listened_to
from cutwork.matrix import from_matrix, to_matrix
from cutwork.patterns import Pattern, Shape
from cutwork.sharding import local, num_processes, part_like, whole
from cutwork.sparsity import TOO_NARROW, WHISPER_ENERGY, Heard, Sparsity, States, measure_energies, take_estimate
from cutwork.topology import Topology


@final
@dataclass(frozen=True)
class Window:
    """How a convolution pads its input (left, right, top, bottom) and moves its kernel over it."""

    padding: tuple[int, ...]
    padding_mode: str
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def weight_gradient(self, x: Tensor, dy: Tensor, shape: Shape) -> Tensor:
        """Return the gradient of the whole weight."""
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = F.pad(x, self.padding, mode=mode)
        return conv2d_weight(padded, list(shape), dy, self.stride, 0, self.dilation, self.groups)


@final
class FixedIndex(Sparsity):
    """A mask that only the sparsifier moves, of a layer that stores nothing outside it.

    The mask is computed when it is asked for. In a step that listens the layer keeps what it read and the gradient of
    what it returned, and `hear` returns what forms the dense gradient of these, averaged over processes as data
    parallelism averages the rest. With energies it is estimated instead, as in `Fixed`.
    """

    ptr: Tensor
    col: Tensor
    order: Tensor | None

    def __init__(
        self,
        topology: Topology,
        weight_shape: Shape,
        *,
        pattern: Pattern,
        density: float,
        transposed: bool,
        energies: tuple[nn.Parameter, nn.Parameter] | None = None,
        window: Window | None = None,
    ) -> None:
        super().__init__(pattern=pattern, density=density, transposed=transposed)
        self.weight_shape, self.window = tuple(weight_shape), window
        self.shape, self.rows, self.columns = topology.shape, topology.rows, topology.columns
        device = topology.col.device
        self.register_buffer("ptr", topology.ptr)
        self.register_buffer("col", topology.col)
        self.register_buffer("order", topology.order)
        self.register_buffer("leak", torch.zeros((), device=device), persistent=False)
        self.ear = Ear()
        self.estimate = energies is not None
        # How often the mask has moved. An average of weights gets the buffers of the model, but not its moves.
        self.num_moves = 0
        # What the buffer `leak` says too; this spares a device the question in each step.
        self.is_loud = False
        if energies is not None:
            self.energy_in, self.energy_out = energies

    @property
    def topology(self) -> Topology:
        """Return the index."""
        return Topology(self.shape, self.rows, self.columns, self.ptr, self.col, self.order)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return `ptr`, `col` and `order`, past `nn.Module.__getattr__`."""
        held = self._buffers
        return held["ptr"], held["col"], held["order"]  # pyrefly: ignore

    @topology.setter
    def topology(self, topology: Topology) -> None:
        for name, index in (("ptr", topology.ptr), ("col", topology.col), ("order", topology.order)):
            held = self._buffers[name]
            if held is None or index is None or held.shape != index.shape:
                self._buffers[name] = index
            else:
                # In place, so that compiled code goes on with the buffers it knows.
                held.copy_(index)

    @property
    def mask(self) -> Tensor:  # pyrefly: ignore[bad-override]
        """Compute the mask, shaped like the weight."""
        return from_matrix(self.mask_matrix(), self.weight_shape, transposed=self.transposed)

    def mask_matrix(self) -> Tensor:
        """Compute the mask as a matrix."""
        return self.topology.to_mask()

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return the dense matrix of a tensor shaped like the values."""
        return self.topology.scatter(whole(tensor.detach()))

    def watch(self, x: Tensor, y: Tensor, channel_dim: int) -> Tensor:
        """Return `y`; in backward, measure energies, or keep `x` and the gradient of `y` if this step listens."""
        # To set an attribute of a module takes as long as a small product; compiled code must not look at it.
        if torch.compiler.is_compiling() or not self.was_used:
            self.was_used = True
        if not self.is_watching:
            return y
        if self.estimate:
            return measure_energies(y, x, self.energy_in, self.energy_out, self.leak, channel_dim)
        return listened_to(y, x, self.ear)

    @property
    def is_watching(self) -> bool:
        """Say whether `watch` has to see what the product itself reads and returns."""
        if not torch.is_grad_enabled():
            return False
        if torch.compiler.is_compiling() and not self.estimate:
            # The compiled code is the same in every step; whether anybody listens, it finds out in backward.
            return self.may_listen and not torch.compiler.is_exporting()
        return self.estimate or self.ear.is_open

    @property
    def is_too_narrow(self) -> bool:
        """Say whether sums of squares would overflow here."""
        return self.estimate and self.energy_in.dtype == torch.float16

    def listen(self, trained: nn.Parameter, on: bool) -> None:
        """Say whether to keep what the dense gradient is made of."""
        if on and self.is_too_narrow:
            raise ValueError(TOO_NARROW)
        if self.estimate:
            if on != self.is_loud:
                self.is_loud = on
                self.leak.fill_(WHISPER_ENERGY * on)
        elif not on:
            self.ear.close()
        elif not self.ear.is_open:
            self.ear.open(trained)

    def hear(self, trained: nn.Parameter, loss_scale: float) -> Heard | None:
        """Return what forms the dense gradient, or its estimate, if the step listened."""
        if self.estimate:
            # A channel of a convolution is read at every place of the kernel.
            repeat = self.shape[1] // len(self.energy_in)
            return take_estimate(self.energy_out, self.energy_in, repeat) if self.is_loud else None
        if not self.ear.is_open or trained.grad is None:
            return None
        return partial(self._form_gradient, self.ear.pairs, trained.grad.clone())

    def settle(self, trained: nn.Parameter) -> None:
        """Zero the values that hang over the matrix, whatever the optimizer wrote there."""
        inside = self.topology.inside()
        if inside is not None:
            trained.mul_(part_like(inside, trained))

    def fits(self, trained: Tensor) -> bool:
        """Say whether the values, as far as they are here, are zero where they hang over the matrix."""
        inside = self.topology.inside()
        return inside is None or not local(torch.where(part_like(inside, trained), 0, trained.detach())).any()

    def condense(self, matrix: Tensor) -> Topology:
        """Return the index of a mask."""
        return indexed(matrix, self.pattern)

    def resizes(self, condensed: Topology) -> bool:
        """Say whether another number of units is kept there."""
        return condensed.num_units != len(self.col)

    @torch.no_grad()
    def move(self, condensed: Topology, trained: nn.Parameter, states: States) -> None:
        """Take over an index; what was not kept starts at zero, in the optimizers' states too.

        The parameter stays the same object, which is what optimizers know it by.
        """
        old, fits = self.topology, not self.resizes(condensed)

        def carried(tensor: Tensor) -> Tensor:
            moved = condensed.gather(old.scatter(tensor.to(old.col.device))).to(tensor.device)
            return tensor.copy_(moved) if fits else moved

        for state in states:
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == trained.shape:
                    state[key] = carried(value)
        if trained.grad is not None:
            trained.grad = carried(trained.grad) if fits else None
        values = carried(trained.detach())
        if not fits:
            replace_numbers(trained, values)
        self.num_moves += not _is_same(old, condensed)
        self.topology = condensed

    def extra_repr(self) -> str:
        """Describe the mask in the representation of the model."""
        outputs, inputs = self.shape
        return f"{self.pattern}, density {self.topology.num_kept() / (outputs * inputs):.4g}"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a copy that this step listens: the copy follows no optimizer that would hear."""
        quiet = torch.zeros_like(self.leak)
        state = {
            "is_followed": False,
            "may_listen": False,
            "is_loud": False,
            "_buffers": {**self._buffers, "leak": quiet},
        }
        return {**vars(self), **state}

    @torch.no_grad()
    def _form_gradient(self, pairs: list[Pair], gradient: Tensor) -> Tensor:
        """Return the dense gradient of these pairs, at the scale of the gradient that the values have got.

        That has been unscaled and clipped since the pairs were heard, and averaged over processes.
        """
        wide = torch.promote_types(gradient.dtype, torch.float32)
        total = torch.zeros(self.shape, dtype=wide, device=gradient.device)
        for x, dy in pairs:
            if self.window is None:
                total.addmm_(dy.reshape(-1, self.shape[0]).to(wide).T, x.reshape(-1, self.shape[1]).to(wide))
            else:
                total += to_matrix(self.window.weight_gradient(x.to(wide), dy.to(wide), self.weight_shape))
        pairs.clear()
        if num_processes() > 1:
            torch.distributed.all_reduce(total)
            total /= num_processes()
        index = self.topology
        total *= _scale_between(index.gather(total), gradient.to(wide))
        return torch.where(index.to_mask(), index.scatter(gradient.to(wide)), total)


def indexed(mask: Tensor, pattern: Pattern) -> Topology:
    """Return the index of a mask; raise ValueError where the mask is not made of whole units."""
    topology = Topology.from_mask(mask, pattern)
    if not torch.equal(topology.to_mask(), mask):
        raise ValueError(
            f"the mask is not legal for {pattern}, so its units cannot be stored alone; use dense storage, or a "
            "pattern that allows it"
        )
    return topology


def replace_numbers(parameter: nn.Parameter, numbers: Tensor) -> None:
    """Give a parameter numbers of another shape; it stays the same object, with its hooks, for all who hold it."""
    # Besides, this makes autograd forget the old shape, which it knows as long as the graph of the last loss lives.
    parameter.set_(numbers)  # pyrefly: ignore[bad-argument-type]


def _is_same(one: Topology, other: Topology) -> bool:
    orders_agree = one.order is other.order or (
        one.order is not None and other.order is not None and torch.equal(one.order, other.order)
    )
    return orders_agree and torch.equal(one.ptr, other.ptr) and torch.equal(one.col, other.col)


def _scale_between(heard: Tensor, reached: Tensor) -> float:
    """Return the number that brings one tensor closest to another."""
    scale = float((heard.double() * reached.double()).sum() / heard.double().square().sum())
    # Without any gradient at what is kept there is nothing to go by, and only the order matters.
    return scale if 0 < scale < float("inf") else 1.0
