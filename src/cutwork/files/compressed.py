"""Layers in compressed storage, in files: the values of the kept units, and their index."""

from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.files.record import COMPRESSED, LayerRecord, options_of, write_pattern
from cutwork.files.storage import (
    Needed,
    State,
    Storage,
    check_absent,
    check_outline,
    need_energies,
    take_own,
    take_shared_weight,
    under,
)
from cutwork.layers.attention import disable_fused_paths
from cutwork.layers.compressed import Compressed, read_topology
from cutwork.layers.storage import become_compressed
from cutwork.ops.topology import Topology
from cutwork.patterns import Tiling, parse
from cutwork.sparsity.compressed import FixedIndex
from cutwork.text import label


@final
class CompressedStorage(Storage):
    """A fixed mask in a pattern with tiles, as an index."""

    def holds(self, layer: nn.Module) -> bool:
        """Say whether a layer stores only what it keeps."""
        return isinstance(layer, Compressed)

    def what_is_tied(self, layer: Any) -> nn.Module:
        """Return the index."""
        return layer.sparsity

    def describe(self, name: str, layer: Any, tied: list[str]) -> LayerRecord:
        """Describe a layer by its index."""
        index = layer.sparsity
        parameters = {"values": layer.trained, **dict(index.named_parameters())}
        return LayerRecord(
            kind="fixed",
            pattern=write_pattern(name, index.pattern),
            density=index.density,
            transposed=index.layout.transposed,
            tied=tied,
            options=options_of(index, "fixed"),
            mask_density=float(index.mask.double().mean()),
            mask_is_legal=index.pattern.allows(index.mask_matrix()),
            frozen=[key for key, parameter in parameters.items() if not parameter.requires_grad],
            storage=COMPRESSED,
            converts=bool(vars(layer).get("converts")),
        )

    def build(self, name: str, record: LayerRecord, model: nn.Module, state: State) -> None:
        """Make dense layers compressed; the values themselves are loaded later."""
        layers: list[Any] = [model.get_submodule(each) for each in (name, *record.tied)]
        values: Any = state.get(under(name, "values"))
        if self.holds(layers[0]):
            # Where there is memory, loading changes the size, for the optimizers too.
            if layers[0].values.is_meta:
                _make_room(layers, values, state.get(under(name, "sparsity.col")))
            return
        weight = take_shared_weight(name, record, model)
        index = _build_index(name, record, weight, values, state)
        trained = nn.Parameter(weight.new_zeros(values.shape), requires_grad=weight.requires_grad)
        for layer in layers:
            become_compressed(layer, index, trained)
            if record.converts:
                layer.bfloat16().converts = True
        disable_fused_paths(model)

    def check(self, name: str, record: LayerRecord, layer: Any, state: State) -> None:
        """Raise ValueError unless kernels can trust the index, and the values are its own."""
        index, values = layer.sparsity, state[under(name, "values")]
        check_absent(name, record, index.topology, values)
        ptr, col = (state[under(name, key)] for key in ("sparsity.ptr", "sparsity.col"))
        order = state.get(under(name, "sparsity.order"))
        read_topology(name, index.shape, index.pattern, values=values, ptr=ptr, col=col, order=order)


def tiling_of(record: LayerRecord) -> Tiling:
    """Return the tiles of a layer that stores only kept ones."""
    tiling = parse(record.pattern).tiling
    assert tiling is not None, f"{record.pattern} has no compressed storage"
    return tiling


def _build_index(name: str, record: LayerRecord, weight: nn.Parameter, values: Any, state: State) -> FixedIndex:
    tiling, layout = tiling_of(record), record.layout_of(weight)
    needed: Needed = {"ptr": (torch.int32, [None]), "col": (torch.int32, [None]), **need_energies(record, layout)}
    if tiling.order is not None:
        needed = {**needed, "order": (torch.int32, [None])}
    own = take_own(name, record, state, needed, weight.device, inside="sparsity.")
    dtype = torch.bfloat16 if record.converts else weight.dtype
    if isinstance(values, Tensor) and values.dtype == torch.bfloat16 != dtype:
        raise ValueError(
            f"{label(name)} holds {values.dtype} in the checkpoint, but {dtype} in the model; build the model in the "
            "same dtypes; where an earlier version packed this layer alone so, sparsify() the model as before, and "
            f"call pack(model, forms={{{name!r}: 'tiles-bf16'}}) before loading"
        )
    check_outline(under(name, "values"), values, dtype, [None, tiling.columns, tiling.rows])
    energies = None
    if record.options["estimate"]:
        energy_in, energy_out = (
            nn.Parameter(own[key], requires_grad=key not in record.frozen) for key in ("energy_in", "energy_out")
        )
        energies = energy_in, energy_out
    return FixedIndex(
        Topology(layout.matrix_shape, tiling.rows, tiling.columns, own["ptr"], own["col"], own.get("order")),
        layout,
        pattern=parse(record.pattern),
        density=record.density,
        energies=energies,
    )


def _make_room(layers: list[Any], values: object, col: object) -> None:
    """Give layers without memory, which share their values, as many units as a state dict has, if these could be so."""
    if not isinstance(values, Tensor) or not isinstance(col, Tensor):
        return
    held, index = layers[0].values, layers[0].sparsity
    if values.ndim == held.ndim and values.shape[1:] == held.shape[1:] and col.shape == values.shape[:1]:
        trained = nn.Parameter(held.new_empty(values.shape), requires_grad=held.requires_grad)
        for layer in layers:
            layer.values = trained
        index.col = index.col.new_empty(col.shape)
