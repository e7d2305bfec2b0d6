"""Linear layers for inference in int8."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.kernels import kernel_name
from cutwork.layers.compressed import CompressedLinear
from cutwork.layers.made_weight import make_weight, read_only
from cutwork.layers.sparse import Sparse, WeightFacts
from cutwork.ops.activations import NONE, activate
from cutwork.ops.block_linear import dense_weight
from cutwork.ops.dispatch import can_skip_dispatcher, kernel_of
from cutwork.ops.int8_linear import int8_linear, integers_of, num_steps, quantize
from cutwork.ops.topology import Topology
from cutwork.patterns import Pattern
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.protected import version_of
from cutwork.text import label

# The tensors that stand for the weight in a state dict; `order` only where outputs are shuffled.
INT8_KEYS = ("integers", "scales", "ptr", "col", "order")


@final
class Int8Linear(Sparse):
    """A compressed linear layer with weights in int8, and inputs brought to 8 bits row by row as they come.

    It does not train, and what was rounded does not come back.
    """

    integers: Tensor
    scales: Tensor
    ptr: Tensor
    col: Tensor
    order: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        topology: Topology,
        *,
        integers: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        layout: Layout,
        pattern: Pattern,
        density: float,
        before: str = NONE,
        after: str = NONE,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = topology.shape
        self.rows, self.columns = topology.rows, topology.columns
        self.layout, self.pattern, self.density = layout, pattern, density
        self.before, self.after = before, after
        held = {"integers": integers, "scales": scales, "ptr": topology.ptr, "col": topology.col}
        for name, tensor in {**held, "order": topology.order, "bias": bias}.items():
            self.register_buffer(name, tensor)
        self._remember()

    @classmethod
    def of(cls, layer: CompressedLinear) -> "Int8Linear":
        """Round the weights of a compressed layer."""
        index, values = layer.sparsity, layer.values.detach().float()
        integers, scales = quantize(values, index.ptr, index.col, index.order, layer.out_features)
        return cls(
            index.topology,
            integers=integers,
            scales=scales,
            bias=None if layer.bias is None else layer.bias.detach().clone(),
            layout=index.layout,
            pattern=index.pattern,
            density=index.density,
            before=layer.before,
            after=layer.after,
        )

    @property
    def topology(self) -> Topology:
        """Return the index."""
        shape = (self.out_features, self.in_features)
        return Topology(shape, self.rows, self.columns, self.ptr, self.col, self.order)

    @property
    def kernel(self) -> str:
        """Return the name of what computes this layer."""
        return kernel_name(int8_linear, self.integers.device, self.integers.dtype)

    def describe_weight(self) -> WeightFacts:
        """Say what the integers, their scales and their index are."""
        stored = sum(tensor.nbytes for name, tensor in self.named_buffers() if name in INT8_KEYS)
        return WeightFacts(
            kind="Linear",
            pattern=self.pattern,
            shape=self.topology.shape,
            num_kept=self.topology.num_kept(),
            numbers=self.integers,
            stored_bytes=stored,
            kept_bytes=stored,
            kernel=self.kernel,
        )

    @property
    def weight(self) -> Tensor:
        """Return what the weight was rounded to: read-only, and made only when its numbers are read."""
        shape = (self.out_features, self.in_features)
        return make_weight(self._form_weight, self._describe(), shape=shape, like=self.scales)

    @weight.setter
    def weight(self, given: object) -> None:
        raise read_only(self._describe())

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Refuse a weight: assigning one ends up here."""
        if name == "weight":
            raise read_only(self._describe())
        super().register_parameter(name, param)

    def _form_weight(self) -> Tensor:
        numbers = integers_of(self.integers, self.ptr, self.columns).to(self.scales.dtype)
        rounded = dense_weight(numbers, self.ptr, self.col, self.order, self.out_features, self.in_features)
        return rounded * self.scales.unsqueeze(1)

    def _describe(self) -> str:
        return f"an int8 linear layer of {self.in_features} inputs and {self.out_features} outputs"

    def forward(self, input: Tensor) -> Tensor:
        """Return the input times the weight, plus the bias; ValueError where a gradient would have to pass."""
        x = input
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"an int8 linear layer of {self.in_features} inputs and {self.out_features} outputs is for inference, "
                "and its input needs a gradient, which it cannot pass on; run the model under torch.no_grad(), or "
                "train it as it was before pack() to int8"
            )
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"an int8 linear layer of {self.in_features} inputs got an input of shape {list(x.shape)}; its last "
                f"size must be {self.in_features}"
            )
        self._look_again()
        flat = activate(self.before, x.detach()).reshape(-1, self.in_features)
        if self._read is not None:
            # Inputs that no weight reads must not widen the range of a row.
            flat = torch.where(self._read, flat, 0)
        # Kernels know float32 and bfloat16.
        flat = flat.float() if x.dtype == torch.float16 else flat
        product = kernel_of(int8_linear, flat) if can_skip_dispatcher(flat) else int8_linear
        held = (self.integers, self.scales, self.ptr, self.col, self.order, self.bias)
        y = product(flat, *held, self.out_features, self.columns, NONE).to(x.dtype)
        return activate(self.after, y).view(*x.shape[:-1], self.out_features)

    def _look_again(self) -> None:
        """Check what kernels trust, if anybody has changed it since the last look."""
        if torch.compiler.is_compiling():
            return
        held = [self._buffers[name] for name in INT8_KEYS]
        same = all(one is other for one, other in zip(held, self._seen, strict=True))
        if not (same and self._versions == sum(map(version_of, held))):
            if not self.col.is_meta:
                given = {name: tensor for name, tensor in self._buffers.items() if tensor is not None}
                self.check_named(self._describe(), given)
            self._remember()

    def _remember(self) -> None:
        """Note what was looked at, and which inputs any output reads; None where that is all of them."""
        self._seen = [self._buffers[name] for name in INT8_KEYS]
        self._versions = sum(map(version_of, self._seen))
        self._read: Tensor | None = None
        if not self.col.is_meta:
            places = (self.col.long().unsqueeze(1) + torch.arange(self.columns, device=self.col.device)).flatten()
            read = torch.zeros(self.in_features, dtype=torch.bool, device=self.col.device)
            read[places[places < self.in_features]] = True
            self._read = None if read.all() else read

    def check_named(self, name: str, given: Mapping[str, Any]) -> None:
        """Raise ValueError, which names the layer, unless these are all its tensors, and fit for a kernel."""
        try:
            if not all(isinstance(tensor, Tensor) for tensor in given.values()):
                raise ValueError("it holds something that is no tensor")
            self._check(given)
        except ValueError as error:
            raise ValueError(
                f"{label(name)}: its int8 weight is damaged: {error}; load what state_dict() or save() has written"
            ) from error

    def _check(self, given: Mapping[str, Tensor]) -> None:
        held = {name: tensor for name, tensor in self._buffers.items() if tensor is not None}
        if differing := sorted(set(held) ^ set(given)):
            missing = [name for name in differing if name in held]
            raise ValueError(f"it {'lacks' if missing else 'has no place for'} {', '.join(missing or differing)}")
        for name, tensor in given.items():
            fits = tensor.dtype == held[name].dtype or (name in ("scales", "bias") and tensor.is_floating_point())
            if not fits or tensor.shape != held[name].shape or not tensor.is_contiguous() or tensor.is_meta:
                raise ValueError(
                    f"{name} must be contiguous {held[name].dtype} of {list(held[name].shape)}; got {tensor.dtype} of "
                    f"{list(tensor.shape)}{' on the meta device' if tensor.is_meta else ''}"
                )
        replace(self.topology, ptr=given["ptr"], col=given["col"], order=given.get("order")).check()
        if (needed := num_steps(given["ptr"], self.columns)) != len(given["integers"]):
            raise ValueError(f"ptr needs integers of {needed} steps; got {len(given['integers'])}")

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
        """Refuse half a weight, and one that kernels could not use though they would trust it, before any is copied."""
        names = (*INT8_KEYS, "bias")
        given = {name: state_dict[f"{prefix}{name}"] for name in names if f"{prefix}{name}" in state_dict}
        if given:
            self.check_named(prefix.removesuffix("."), given)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._remember()

    def extra_repr(self) -> str:
        """Describe the layer, and what computes it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"pattern={self.pattern}, kernel={self.kernel}"
        )
