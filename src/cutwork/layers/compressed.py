"""Linear layers with compressed storage: the values of the kept units, and the index of these beside them."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.kernels import activate, tile_kernel
from cutwork.layers.fixed_index import FixedIndex, indexed, replace_numbers
from cutwork.layers.linear import SparseConv1D, SparseLinear
from cutwork.matrix import from_matrix, to_matrix
from cutwork.ops.block_linear import linear
from cutwork.patterns import Block, Pattern, Shuffled
from cutwork.sharding import is_sharded
from cutwork.sparsity import Fixed
from cutwork.topology import Topology

activate()


@final
class CompressedLinear(nn.Module):
    """A linear layer that stores and trains `values[units, columns, rows]`: what its `sparsity` keeps of the weight.

    It was an `nn.Linear`, or the layer of transformers whose weight is stored `[in, out]`: `sparsity.transposed` says
    which.
    """

    in_features: int
    out_features: int
    values: nn.Parameter
    bias: nn.Parameter | None
    sparsity: FixedIndex

    @property
    def trained(self) -> nn.Parameter:
        """Return the parameter that the mask belongs to."""
        return self.values

    @property
    def kernel(self) -> str:
        """Return the name of what computes this layer: compiled tile kernels, or the reference in plain PyTorch."""
        return tile_kernel(self.values.device, self.values.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` times the weight, plus the bias."""
        index, values = self.sparsity, self.values
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"{self._described()} got an input of shape {list(x.shape)}; its last size must be {self.in_features}"
            )
        if x.device != values.device:
            raise ValueError(f"{self._described()} on {values.device} got an input on {x.device}; move one of them")
        if x.dtype != values.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"{self._described()} of {values.dtype} got an input of {x.dtype}; convert one of them, or use "
                "torch.autocast"
            )
        y = linear(x, values, index.ptr, index.col, index.order, self.bias, outputs=self.out_features)
        return index.watch(x, y, -1)

    def extra_repr(self) -> str:
        """Describe the layer as its dense forms do, and what computes it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"kernel={self.kernel}"
        )

    def _described(self) -> str:
        return f"a compressed linear layer of {self.in_features} inputs and {self.out_features} outputs"

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
        topology = checked_topology(
            *(name, index.shape, index.pattern),
            values=self.values if values is None else values,
            ptr=_first_of(given["sparsity.ptr"], index.ptr),
            col=_first_of(given["sparsity.col"], index.col),
            order=_first_of(given["sparsity.order"], index.order),
        )
        if values is not None and values.shape != self.values.shape:
            if is_sharded(self.values):
                raise ValueError(f"{name}: a sharded layer cannot take another number of units; load before sharding")
            replace_numbers(self.values, self.values.new_zeros(values.shape))
            self.values.grad = None
            index.col = torch.zeros_like(topology.col, device=index.col.device)


# What the index of a layer has in a state dict.
INDEX_KEYS = ("sparsity.ptr", "sparsity.col", "sparsity.order")

# The dense storage of each layer that has compressed storage too.
COMPRESSED_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    SparseLinear: CompressedLinear,
    SparseConv1D: CompressedLinear,
}


def checked_topology(
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
    if not isinstance(pattern, Block | Shuffled):
        raise ValueError(f"{name or 'the model itself'}: {why_no_storage(CompressedLinear, pattern)}")
    columns = pattern.columns if isinstance(pattern, Block) else 1
    topology = Topology(shape, pattern.rows, columns, ptr, col, order)
    try:
        topology.check()
        if (order is not None) != isinstance(pattern, Shuffled):
            raise ValueError(f"{pattern} has {'no' if order is not None else 'an'} order of its outputs")
        expected = (topology.num_units, columns, pattern.rows)
        if tuple(values.shape) != expected:
            raise ValueError(f"the index has values of shape {list(expected)}; got {list(values.shape)}")
        inside = topology.inside()
        if inside is not None and not is_sharded(values) and values.detach()[~inside.to(values.device)].any():
            raise ValueError("values that hang over the matrix must be zero")
    except ValueError as error:
        raise ValueError(
            f"{name or 'the model itself'}: its compressed weight is damaged: {error}; load what save() or "
            "state_dict() has written"
        ) from error
    return topology


def why_not_compressed(layer: nn.Module) -> str:
    """Say why a sparse layer cannot be compressed as it is, and what to do; empty where it can."""
    if reason := why_no_storage(COMPRESSED_CLASSES.get(type(layer)), layer.sparsity.pattern):  # pyrefly: ignore
        return reason
    sparsity, weight = layer.sparsity, layer.weight
    if not isinstance(sparsity, Fixed):
        return (
            f"its mask is {type(sparsity).__name__.lower()} from the whole weight, which compressed storage does not "
            "have; keep it in dense storage, or bake() and sparsify(masks=...) it"
        )
    if is_sharded(weight):  # pyrefly: ignore
        return "its weight is sharded; pack before fully_shard()"
    if not sparsity.fits(weight):  # pyrefly: ignore
        return "its weight is not zero outside its mask; bake() the model and sparsify(masks=...) it anew"
    return ""


def why_no_storage(compressed: type[nn.Module] | None, pattern: Pattern) -> str:
    """Say why layers of a class, in a pattern, have no compressed storage, and what to do; empty where they have."""
    if compressed is None:
        return "convolutions have no compressed storage yet; keep it in dense storage"
    if not isinstance(pattern, Block | Shuffled):
        return f"{pattern} has no tiles to store; use block, vector or shuffled, or keep it in dense storage"
    return ""


@torch.no_grad()
def compress(layers: Mapping[str, nn.Module]) -> None:
    """Turn layers with fixed masks from dense storage into compressed, in place; those that share a weight together."""
    for name, layer in layers.items():
        if reason := why_not_compressed(layer):
            raise ValueError(f"{name or 'the model itself'}: {reason}")
    groups = _by_sparsity(layers)
    topologies = [_topology_of(fixed, sharers, layers) for fixed, sharers in groups.items()]
    for topology, (fixed, sharers) in zip(topologies, groups.items(), strict=True):
        assert isinstance(fixed, Fixed)
        weight = sharers[0].weight
        values = topology.gather(to_matrix(weight.detach(), transposed=fixed.transposed))
        index = FixedIndex(
            topology,
            pattern=fixed.pattern,
            density=fixed.density,
            transposed=fixed.transposed,
            energies=(fixed.energy_in, fixed.energy_out) if fixed.estimate else None,
        )
        trained = nn.Parameter(values, requires_grad=weight.requires_grad)
        for layer in sharers:
            become_compressed(layer, index, trained)


@torch.no_grad()
def expand(layers: Mapping[str, nn.Module]) -> None:
    """Undo `compress`."""
    for index, sharers in _by_sparsity(layers).items():
        assert isinstance(index, FixedIndex)
        values = sharers[0].values
        fixed = Fixed(
            index.mask_matrix(),
            index.shape[::-1] if index.transposed else index.shape,
            pattern=index.pattern,
            density=index.density,
            transposed=index.transposed,
            estimate=index.estimate,
        )
        if index.estimate:
            fixed.energy_in, fixed.energy_out = index.energy_in, index.energy_out
        dense = from_matrix(index.matrix(values), fixed.mask.shape, transposed=index.transposed)
        weight = nn.Parameter(dense, requires_grad=values.requires_grad)
        for layer in sharers:
            _become_expanded(layer, fixed, weight)


def become_compressed(layer: Any, index: FixedIndex, values: nn.Parameter) -> None:
    """Turn one linear layer, dense or in dense storage, into a compressed one, in place."""
    layer.out_features, layer.in_features = index.shape
    layer.__class__ = CompressedLinear
    _exchange_parameter(layer, "weight", "values", values)
    layer.sparsity = index.train(layer.training)


def _become_expanded(layer: Any, fixed: Fixed, weight: nn.Parameter) -> None:
    if fixed.transposed:
        # The layer of transformers has these numbers under other names.
        del layer.in_features, layer.out_features
    layer.__class__ = SparseConv1D if fixed.transposed else SparseLinear
    _exchange_parameter(layer, "values", "weight", weight)
    layer.sparsity = fixed.train(layer.training)


def _exchange_parameter(layer: nn.Module, old: str, new: str, parameter: nn.Parameter) -> None:
    """Put a parameter in the place of another: the order of a layer's parameters is that of the optimizer's."""
    parameters = {new if name == old else name: held for name, held in layer._parameters.items()}
    layer._parameters.clear()
    layer._parameters.update({**parameters, new: parameter})


def _topology_of(fixed: nn.Module, sharers: list[Any], layers: Mapping[str, nn.Module]) -> Topology:
    assert isinstance(fixed, Fixed)
    try:
        return indexed(fixed.mask_matrix(), fixed.pattern)
    except ValueError as error:
        name = next(name for name, layer in layers.items() if layer is sharers[0])
        raise ValueError(f"{name or 'the model itself'}: {error}") from error


def _by_sparsity(layers: Mapping[str, nn.Module]) -> dict[nn.Module, list[Any]]:
    groups: dict[nn.Module, list[Any]] = {}
    for layer in layers.values():
        groups.setdefault(layer.get_submodule("sparsity"), []).append(layer)
    return groups


def _first_of(given: Tensor | None, held: Tensor | None) -> Any:
    return held if given is None else given
