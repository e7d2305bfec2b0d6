"""A fixed mask in compressed storage: the index of the units that are kept."""

from collections.abc import Callable, Collection
from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.distributed import local, part_like, whole
from cutwork.ops.passage import Passage
from cutwork.ops.topology import Topology
from cutwork.patterns import Pattern
from cutwork.sparsity.base import Sparsity, States
from cutwork.sparsity.birth import usual_size
from cutwork.sparsity.estimate import Energies, check_not_transformed, take_estimate
from cutwork.sparsity.formed import FormedGradient
from cutwork.sparsity.gradient import GradientOfKept
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.listening import Ear
from cutwork.sparsity.numbers import KeptNumbers, Mask
from cutwork.sparsity.protected import plain, protect, version_of

# The tensors of an index, as they are called among the buffers and in a state dict.
INDEX = ("ptr", "col", "order")
Index = tuple[Tensor, Tensor, Tensor | None]


@final
class FixedIndex(Sparsity):
    """A fixed mask, of a layer that stores nothing outside it.

    The mask is computed when it is asked for. In a step that expects the dense gradient the products tell its ear what
    they read and the gradient of what they returned, and `before_update` returns what forms the dense gradient of
    these, averaged over processes as data parallelism averages the rest. With energies it is estimated, as in `Fixed`.

    Kernels trust an index. So it is checked once after each change, whoever made it.
    """

    ptr: Tensor
    col: Tensor
    order: Tensor | None
    # The index as others find it among the buffers, and as it is computed with; both have the same memory.
    _shown: Index
    _index: Index

    def __init__(
        self,
        topology: Topology,
        layout: Layout,
        *,
        pattern: Pattern,
        density: float,
        energies: Energies | None = None,
    ) -> None:
        super().__init__(layout=layout, pattern=pattern, density=density)
        self.shape, self.rows, self.columns = topology.shape, topology.rows, topology.columns
        for name in INDEX:
            self.register_buffer(name, getattr(topology, name))
        self.restart(topology.col.device)
        self._show()
        self._versions = _versions_of(self._index)
        self.ear = Ear()
        # How often the mask has moved; an average of weights may have been left behind.
        self.num_moves = 0
        self.estimate = energies is not None
        if energies is not None:
            self.energy_in, self.energy_out = energies

    @property
    def topology(self) -> Topology:
        """Return the index."""
        return Topology(self.shape, self.rows, self.columns, *self.tensors)

    @property
    def tensors(self) -> Index:
        """Return `ptr`, `col` and `order`; raise ValueError where somebody has damaged them."""
        index = self._index
        if torch.compiler.is_compiling():
            return index
        held, shown, versions = self._buffers, self._shown, self._versions
        if held["ptr"] is not shown[0] or held["col"] is not shown[1] or versions != _versions_of(index):
            self._look_again()
        return self._index

    def _look_again(self) -> None:
        self._show()
        index = Topology(self.shape, self.rows, self.columns, *self._index)
        if all(type(tensor) is Tensor and not tensor.is_meta for tensor in self._index if tensor is not None):
            try:
                index.check()
            except ValueError as error:
                raise ValueError(
                    f"the index of a compressed {self._describe()} was changed from outside and is damaged: {error}; "
                    "load what save() or state_dict() has written"
                ) from error
        self._versions = _versions_of(self._index)

    def _describe(self) -> str:
        return f"{'x'.join(map(str, self.shape))} weight in {self.pattern}"

    def _show(self) -> None:
        """Let others find the index among the buffers, where no average can change it."""
        what = f"of a compressed {self._describe()}"
        held = (self._buffers[name] for name in INDEX)
        shown: Any = tuple(
            tensor if tensor is None else protect(tensor, f"the index {name} {what}", may_follow=False)
            for name, tensor in zip(INDEX, held, strict=True)
        )
        self._buffers.update(zip(INDEX, shown, strict=True))
        self._shown = shown
        self._index = tuple(tensor if tensor is None else plain(tensor) for tensor in shown)  # pyrefly: ignore

    @topology.setter
    def topology(self, topology: Topology) -> None:
        for name, held, index in zip(INDEX, self._index, (topology.ptr, topology.col, topology.order), strict=True):
            if held is None or index is None or held.shape != index.shape:
                # A copy, because an average that moves along is given the same.
                self._buffers[name] = index if index is None else index.to(self.gain.device, copy=True)
            else:
                # In place, so that compiled code goes on with the tensors it knows.
                held.copy_(index)
        self._show()
        self._versions = _versions_of(self._index)
        self._renew_gate()

    def _make_gate(self, draw: Callable[[int], Tensor]) -> Tensor:
        """Return a number for each unit."""
        return draw(self.topology.num_units)[:, None, None]

    @property
    def mask(self) -> Tensor:
        """Compute the mask, shaped like the weight."""
        return self.layout.from_matrix(self.mask_matrix())

    def mask_matrix(self) -> Tensor:
        """Compute the mask as a matrix."""
        return self.topology.to_mask()

    def matrix(self, tensor: Tensor) -> Tensor:
        """Return the dense matrix of a tensor shaped like the values."""
        return self.topology.scatter(whole(tensor.detach()))

    @property
    def listener(self) -> Tensor | None:
        """Return the number by which products tell the ear what they read and what they get, while it listens."""
        if self.estimate or not torch.is_grad_enabled():
            return None
        if torch.compiler.is_compiling():
            # The compiled code is the same in every step; whether anybody listens, it finds out in backward.
            return self.ear.ear if self.needs_gradient and not torch.compiler.is_exporting() else None
        if not self.ear.is_open:
            return None
        check_not_transformed()
        return self.ear.ear

    def expect_gradient(self, trained: nn.Parameter, on: bool) -> None:
        """Say whether to keep what the dense gradient is made of."""
        if self.estimate:
            self._expect_estimate(on)
        elif not on:
            self.ear.close()
        elif not self.ear.is_open:
            self.ear.open(trained)

    def before_update(self, trained: nn.Parameter, loss_scale: float, learning_rate: float) -> GradientOfKept | None:
        """Return the dense gradient, or its estimate, if it was expected."""
        self.was_resized = False
        if self.energies is not None:
            return take_estimate(self.energies, self.shape[1]) if self._gain else None
        if not self.ear.is_open or trained.grad is None:
            return None
        return FormedGradient(self.ear.pairs, trained.grad.clone(), self.topology)

    def after_update(self, trained: nn.Parameter) -> None:
        """Zero the values that hang over the matrix, whatever the optimizer wrote there."""
        inside = self.topology.inside()
        if inside is not None:
            trained.mul_(part_like(inside, trained))

    def fits(self, trained: Tensor) -> bool:
        """Say whether the values, as far as they are here, are zero where they hang over the matrix."""
        inside = self.topology.inside()
        return inside is None or not local(torch.where(part_like(inside, trained), 0, trained.detach())).any()

    def numbers(self, trained: nn.Parameter, gradient: GradientOfKept | None) -> KeptNumbers:
        """Return what a method looks at; after that the ear needs no longer know what the gradient is formed from."""
        self.ear.pairs = []
        return KeptNumbers(self.pattern, self.topology, whole(trained.detach()), gradient)

    def condense(self, mask: Mask) -> Topology:
        """Return the index of a mask."""
        return index_of(mask, self.pattern) if isinstance(mask, Tensor) else self.pattern.settle(mask)

    def resizes(self, condensed: Topology) -> bool:
        """Say whether another number of units is kept there."""
        return condensed.num_units != self.topology.num_units

    def reorders(self, condensed: Topology) -> bool:
        """Say whether other units are kept there."""
        return not _is_same(self.topology, condensed)

    @torch.no_grad()
    def move(self, condensed: Topology, trained: nn.Parameter, states: States, sizes: Collection[str] = ()) -> None:
        """Take over an index; what was not kept starts at zero, optimizer state there or at its usual size.

        The parameter stays the same object, which is what optimizers know it by.
        """
        old, fits = self.topology, not self.resizes(condensed)
        passage = Passage(old, condensed)

        def carry(tensor: Tensor) -> Tensor:
            moved = passage.carry(tensor.to(old.col.device)).to(tensor.device)
            return tensor.copy_(moved) if fits else moved

        begin = _beginning(old, condensed, carry) if sizes else None
        for state in states:
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == trained.shape:
                    start = usual_size(value, old.inside()) if key in sizes else 0.0
                    state[key] = carry(value)
                    if start and begin is not None:
                        state[key].masked_fill_(begin.to(value.device), start)
        if trained.grad is not None:
            trained.grad = carry(trained.grad) if fits else None
        values = carry(trained.detach())
        if not fits:
            replace_numbers(trained, values)
        self.num_moves += not _is_same(old, condensed)
        self.topology = condensed

    def extra_repr(self) -> str:
        """Describe the mask in the representation of the model."""
        outputs, inputs = self.shape
        return f"{self.pattern}, density {self.topology.num_kept() / (outputs * inputs):.4g}"

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Do what `nn.Module` does, and go on with the index that comes out."""
        super()._apply(fn, recurse)
        self._show()
        # What was moved may have arrived without its numbers.
        self._versions = -1
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is in the buffers."""
        state = {key: value for key, value in super().__getstate__().items() if key not in ("_shown", "_index")}
        return {**state, "_versions": -1}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make anew what a copy leaves out."""
        super().__setstate__(state)
        self._show()

    def make_room(self, num_units: int) -> None:
        """Expect the index of another number of units from a state dict; an optimizer may know nothing of it."""
        self.was_resized = True
        self.col = torch.zeros(num_units, dtype=torch.int32, device=self.col.device)

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
        """Refuse an index that products could not use, before anything is touched."""
        buffers: dict[str, Any] = {name: self._buffers[name] for name in INDEX}
        keys = {
            name: f"{prefix}{name}" for name in INDEX if buffers[name] is not None and f"{prefix}{name}" in state_dict
        }
        # Those of another model are protected, and would be refused as in an average.
        state_dict.update({key: plain(state_dict[key]) for key in keys.values()})
        try:
            for name, key in keys.items():
                found, expected = state_dict[key], list(buffers[name].shape)
                if not isinstance(found, Tensor) or list(found.shape) != expected:
                    shape = list(found.shape) if isinstance(found, Tensor) else "no tensor"
                    raise ValueError(f"{name} is {shape}, where the layer has {expected}")
            given = {**buffers, **{name: state_dict[key] for name, key in keys.items()}}
            Topology(self.shape, self.rows, self.columns, **given).check()
        except ValueError as error:
            name = prefix.removesuffix(".").removesuffix("sparsity").removesuffix(".")
            raise ValueError(
                f"{name or 'the layer'}: its compressed weight is damaged: {error}; load what save() or state_dict() "
                "has written, of a layer that keeps as many units"
            ) from error
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._show()
        self._versions = _versions_of(self._index)
        self._renew_gate()


def why_not_store(pattern: Pattern) -> str:
    """Say why layers in a pattern have no compressed storage, and what to do; empty where they have."""
    if pattern.tiling is None:
        return f"{pattern} has no tiles to store; use block, vector or shuffled, or keep it in dense storage"
    return ""


def index_of(mask: Tensor, pattern: Pattern) -> Topology:
    """Return the index of a mask; raise ValueError where the mask is not made of whole units."""
    tiling = pattern.tiling
    if tiling is None:
        raise ValueError(why_not_store(pattern))
    order = None if tiling.order is None else tiling.order(mask)
    topology = Topology.from_mask(mask, tiling.rows, tiling.columns, order)
    if not torch.equal(topology.to_mask(), mask):
        raise ValueError(
            f"the mask is not legal for {pattern}, so its units cannot be stored alone; use dense storage, or a "
            "pattern that allows it"
        )
    return topology


def _versions_of(index: Index) -> int:
    """Return a number that changes with every write to these tensors."""
    ptr, col, order = index
    return version_of(ptr) + version_of(col) + version_of(order)


def replace_numbers(parameter: nn.Parameter, numbers: Tensor) -> None:
    """Give a parameter numbers of another shape; it stays the same object, with its hooks, for all who hold it."""
    # Besides, this makes autograd forget the old shape, which it knows as long as the graph of the last loss lives.
    parameter.set_(numbers)  # pyrefly: ignore[bad-argument-type]


def _is_same(one: Topology, other: Topology) -> bool:
    return one.same_grid(other) and torch.equal(one.ptr, other.ptr) and torch.equal(one.col, other.col)


def _beginning(old: Topology, new: Topology, carry: Callable[[Tensor], Tensor]) -> Tensor:
    """Return which values of a new index are of weights that the old one did not keep."""
    was_kept = carry(old.col.new_ones((old.num_units, old.columns, old.rows), dtype=torch.bool))
    inside = new.inside()
    return ~was_kept if inside is None else ~was_kept & inside
