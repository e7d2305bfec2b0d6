"""Layers with compressed storage: the values of the kept units, and the index of these beside them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutwork.distributed import is_sharded
from cutwork.kernels import kernel_name
from cutwork.layers.made_weight import make_weight, read_only
from cutwork.layers.parameter import read_parameter
from cutwork.layers.sparse import Sparse, WeightFacts
from cutwork.ops.activations import NONE, activate
from cutwork.ops.block_conv2d import block_conv2d, conv2d
from cutwork.ops.block_linear import block_linear, dense_weight, find_groups, linear
from cutwork.ops.dispatch import is_autocast_enabled
from cutwork.ops.topology import Topology
from cutwork.patterns import Pattern, Tiling
from cutwork.sparsity.compressed import FixedIndex, replace_numbers, why_not_store
from cutwork.text import label


class Compressed(Sparse):
    """A layer that stores and trains `values[units, columns, rows]`: what its `sparsity` keeps of the weight."""

    # The operator of `ops` that multiplies with the values.
    operator: ClassVar[Any]
    values: nn.Parameter
    bias: nn.Parameter | None
    sparsity: FixedIndex
    # The class that the layer had, perhaps a subclass, and that it gets back.
    dense_class: type[nn.Module]
    # The activation that the layer applies to what it returns.
    after: str = NONE

    @property
    def trained(self) -> nn.Parameter:
        """Return the parameter that the mask belongs to."""
        return self.values

    @property
    def weight(self) -> Tensor:
        """Return the whole weight, zero where nothing is kept: read-only, and made only when its numbers are read."""
        return make_weight(
            self._form_weight, self._describe(), shape=self.sparsity.layout.shape, like=read_parameter(self, "values")
        )

    @weight.setter
    def weight(self, given: object) -> None:
        raise read_only(self._describe())

    @final
    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse a weight: assigning one ends up here."""
        if name == "weight":
            raise read_only(self._describe())
        super().register_parameter(name, param)

    @property
    def kernel(self) -> str:
        """Return the name of what computes this layer: compiled tile kernels, or the reference in plain PyTorch."""
        return kernel_name(self.operator, self.values.device, self.values.dtype)

    @final
    def describe_weight(self) -> WeightFacts:
        """Say what the values and their index are."""
        index = self.sparsity
        stored = sum(tensor.nbytes for tensor in (self.values, *index.tensors) if tensor is not None)
        return WeightFacts(
            kind=self.dense_class.__name__,
            pattern=index.pattern,
            shape=index.layout.shape,
            num_kept=index.topology.num_kept(),
            numbers=self.values,
            stored_bytes=stored,
            kept_bytes=stored,
            kernel=self.kernel,
        )

    @torch.no_grad()
    def scale_outputs(self, scale: Tensor, shift: Tensor) -> None:
        """Multiply each output by a number and add another to it, from now on."""
        index = self.sparsity
        groups = len(index.ptr) - 1
        placed = scale if index.order is None else scale[index.order.long()]
        placed = F.pad(placed, (0, groups * index.rows - len(placed))).view(groups, 1, index.rows)
        self.values.mul_(placed[find_groups(index.ptr)].to(self.values.dtype))
        bias = torch.zeros_like(shift) if self.bias is None else self.bias
        self.bias = nn.Parameter((bias * scale + shift).to(self.values.dtype))

    @final
    def _form_weight(self) -> Tensor:
        index, values = self.sparsity, read_parameter(self, "values")
        index.note_use()
        outputs, inputs = index.shape
        if index.listener is None:
            matrix = dense_weight(values, *index.tensors, outputs, inputs)
        else:
            # As a product, so that the listener is told of its gradient.
            unit = torch.eye(inputs, dtype=values.dtype, device=values.device)
            matrix = linear(unit, values, *index.tensors, outputs=outputs, ear=index.listener).T
        return index.layout.from_matrix(matrix)

    @final
    def _describe_fusions(self) -> str:
        return "".join(f", {when}={getattr(self, when)}" for when in ("before", "after") if vars(self).get(when))

    @abstractmethod
    def _describe(self) -> str:
        """Return what errors call this layer."""

    @final
    def _check(self, x: Tensor, values: Tensor, channel_dim: int, channels: int) -> None:
        if x.dim() < -channel_dim or x.shape[channel_dim] != channels:
            where = "last size" if channel_dim == -1 else "number of channels"
            raise ValueError(
                f"{self._describe()} got an input of shape {list(x.shape)}; its {where} must be {channels}"
            )
        if x.device != values.device:
            raise ValueError(f"{self._describe()} on {values.device} got an input on {x.device}; move one of them")
        if x.dtype != values.dtype and not is_autocast_enabled(x):
            raise ValueError(
                f"{self._describe()} of {values.dtype} got an input of {x.dtype}; convert one of them, or use "
                "torch.autocast"
            )

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
        """Make room for another number of units, and refuse an index that products could not use."""
        given = {key: state_dict.get(f"{prefix}{key}") for key in ("values", *INDEX_KEYS)}
        if any(isinstance(value, Tensor) for value in given.values()):
            self._make_room(given, prefix.removesuffix("."))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @torch.no_grad()
    def _make_room(self, given: Mapping[str, Tensor | None], name: str) -> None:
        index, values = self.sparsity, given["values"]
        topology = read_topology(
            *(name, index.shape, index.pattern),
            values=self.values if values is None else values,
            ptr=_prefer(given["sparsity.ptr"], index.ptr),
            col=_prefer(given["sparsity.col"], index.col),
            order=_prefer(given["sparsity.order"], index.order),
        )
        if values is not None and values.shape != self.values.shape:
            if is_sharded(self.values):
                raise ValueError(f"{name}: a sharded layer cannot take another number of units; load before sharding")
            replace_numbers(self.values, self.values.new_zeros(values.shape))
            self.values.grad = None
            index.make_room(topology.num_units)


@final
class CompressedLinear(Compressed):
    """A linear layer. It was an `nn.Linear`, or transformers' whose weight is transposed, `[in, out]`."""

    operator = block_linear
    in_features: int
    out_features: int
    # The activation that the layer applies to what it is given.
    before: str = NONE
    # Whether inputs are converted to the precision of the values, and results back.
    converts: bool = False

    def forward(self, input: Tensor) -> Tensor:
        """Return the input times the weight, plus the bias."""
        values, x = read_parameter(self, "values"), input
        if self.converts and x.dtype != values.dtype:
            return self.forward(x.to(values.dtype)).to(x.dtype)
        self._check(x, values, -1, self.in_features)
        index, before, after = self.sparsity, self.before, self.after
        if index.is_observing:
            x, before, after = activate(before, x), NONE, NONE
        kept = index.leave_out(values, is_training=self.training)
        y = linear(
            *(x, kept, *index.tensors, read_parameter(self, "bias")),
            outputs=self.out_features,
            before=before,
            after=after,
            ear=index.listener,
        )
        y = index.observe(x, y, -1)
        return y if after == self.after else activate(self.after, y)

    def extra_repr(self) -> str:
        """Describe the layer as its dense forms do, and what computes it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"kernel={self.kernel}{self._describe_fusions()}"
        )

    def _describe(self) -> str:
        return f"a compressed linear layer of {self.in_features} inputs and {self.out_features} outputs"


@final
class CompressedConv2d(Compressed):
    """A convolution, with all options of the `nn.Conv2d` that it was; what it returns is channels-last in memory."""

    operator = block_conv2d
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] | str
    dilation: tuple[int, int]
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: Sequence[int]

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of the input with the weight, plus the bias."""
        if input.dim() not in (3, 4):
            raise ValueError(
                f"{self._describe()} got an input of shape {list(input.shape)}; it must be [batch,] channels, height, "
                "width"
            )
        values = read_parameter(self, "values")
        self._check(input, values, -3, self.in_channels)
        index = self.sparsity
        after = NONE if index.is_observing else self.after
        x, padding = self._pad(input)
        kept = index.leave_out(values, is_training=self.training)
        y = conv2d(
            *(x, kept, *index.tensors, read_parameter(self, "bias")),
            outputs=self.out_channels,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            after=after,
            ear=index.listener,
        )
        y = index.observe(input, y, -3)
        return y if after == self.after else activate(self.after, y)

    def extra_repr(self) -> str:
        """Describe the layer as its dense form does, and what computes it."""
        return f"{nn.Conv2d.extra_repr(self)}, kernel={self.kernel}{self._describe_fusions()}"  # pyrefly: ignore[bad-argument-type]

    def _pad(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the input, padded where zeros alike on both sides would not do, and the padding that is left to do."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if self.padding_mode != "zeros":
            return F.pad(x, (left, right, top, bottom), mode=self.padding_mode), (0, 0)
        if (left, top) != (right, bottom):
            x = F.pad(x, (0, right - left, 0, bottom - top))
        return x, (top, left)

    def _describe(self) -> str:
        return f"a compressed convolution of {self.in_channels} to {self.out_channels} channels"


# What the tensors of an index are called in the state dict of a layer.
INDEX_KEYS = ("sparsity.ptr", "sparsity.col", "sparsity.order")


def read_topology(
    name: str,
    shape: tuple[int, int],
    pattern: Pattern,
    *,
    values: Tensor,
    ptr: Tensor,
    col: Tensor,
    order: Tensor | None,
) -> Topology:
    """Return the index that these tensors are; raise ValueError where they are damaged or do not fit each other."""
    tiling = pattern.tiling
    if tiling is None:
        raise ValueError(f"{label(name)}: {why_not_store(pattern)}")
    if not isinstance(values, Tensor) or values.is_meta:
        raise ValueError(
            f"{label(name)}: its values must be a tensor with memory; got {type(values).__name__}; load "
            "what save() or state_dict() has written"
        )
    if reason := _why_not_fit(tiling, values, order):
        raise ValueError(
            f"{label(name)} is {pattern}, but was saved in another pattern: {reason}; sparsify() the "
            "model as the saved one, or load a file that save() wrote into a dense model"
        )
    topology = Topology(shape, tiling.rows, tiling.columns, ptr, col, order)
    try:
        topology.check()
        expected = (topology.num_units, tiling.columns, tiling.rows)
        if tuple(values.shape) != expected:
            raise ValueError(f"the index has values of shape {list(expected)}; got {list(values.shape)}")
        inside = topology.inside()
        if inside is not None and not is_sharded(values) and values.detach()[~inside.to(values.device)].any():
            raise ValueError("values that hang over the matrix must be zero")
    except ValueError as error:
        raise ValueError(
            f"{label(name)}: its compressed weight is damaged: {error}; load what save() or state_dict() has written"
        ) from error
    return topology


def _why_not_fit(tiling: Tiling, values: Tensor, order: Tensor | None) -> str:
    """Say why a compressed weight cannot be in a pattern of this tiling; empty where it may be."""
    if values.ndim == 3 and tuple(values.shape[1:]) != (tiling.columns, tiling.rows):
        return f"its units have {values.shape[2]} outputs and {values.shape[1]} inputs"
    if order is not None and tiling.order is None:
        return "its outputs are shuffled"
    if order is None and tiling.order is not None:
        return "its outputs are not shuffled"
    return ""


def _prefer(given: Tensor | None, held: Tensor | None) -> Any:
    return held if given is None else given
