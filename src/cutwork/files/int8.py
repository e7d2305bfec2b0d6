"""Layers in int8, in files: the rounded values of the kept units, and their index."""

from typing import Any, final

import torch
from torch import nn

from cutwork.files.compressed import tiling_of
from cutwork.files.record import INT8, LayerRecord, write_pattern
from cutwork.files.storage import State, Storage, check_absent, take_own, under
from cutwork.layers.attention import disable_fused_paths
from cutwork.layers.int8 import Int8Linear
from cutwork.layers.swap import exchange
from cutwork.ops.int8_linear import STEP
from cutwork.ops.topology import Topology
from cutwork.patterns import parse
from cutwork.sparsity.matrix import matrix_shape


@final
class Int8Storage(Storage):
    """A fixed mask in a pattern with tiles, as an index inside a layer that does not train."""

    def holds(self, layer: nn.Module) -> bool:
        """Say whether a layer computes in int8."""
        return isinstance(layer, Int8Linear)

    def what_is_tied(self, layer: Any) -> nn.Module:
        """Return the layer: none shares its weight with another."""
        return layer

    def describe(self, name: str, layer: Any, tied: list[str]) -> LayerRecord:
        """Describe a layer by its index."""
        outputs, inputs = layer.topology.shape
        return LayerRecord(
            kind="fixed",
            pattern=write_pattern(name, layer.pattern),
            density=layer.density,
            transposed=layer.transposed,
            tied=tied,
            options={},
            mask_density=layer.topology.num_kept() / (outputs * inputs),
            mask_is_legal=True,
            frozen=[],
            storage=INT8,
        )

    def build(self, name: str, record: LayerRecord, model: nn.Module, state: State) -> None:
        """Put a layer in int8 in the place of a dense one, or fill one that is there."""
        layer: Any = model.get_submodule(name)
        is_there = self.holds(layer)
        shape = layer.topology.shape if is_there else matrix_shape(layer.weight.shape, transposed=record.transposed)
        device = (layer.scales if is_there else layer.weight).device
        tiling, outputs = tiling_of(record), shape[0]
        needed: dict[str, Any] = {
            "integers": (torch.int8, [None, tiling.rows, STEP]),
            "scales": (None, [outputs]),
            "ptr": (torch.int32, [None]),
            "col": (torch.int32, [None]),
        }
        if tiling.order is not None:
            needed["order"] = torch.int32, [outputs]
        if layer.bias is not None:
            needed["bias"] = layer.bias.dtype, [outputs]
        own = take_own(name, record, state, needed, device)
        if is_there:
            # Another number of steps needs room, which loading does not make.
            for key, tensor in own.items():
                layer.register_buffer(key, tensor)
            return
        built = Int8Linear(
            Topology(shape, tiling.rows, tiling.columns, own["ptr"], own["col"], own.get("order")),
            integers=own["integers"],
            scales=own["scales"],
            bias=own.get("bias"),
            pattern=parse(record.pattern),
            density=record.density,
            transposed=record.transposed,
        )
        exchange(model, layer, built.train(layer.training))
        disable_fused_paths(model)

    def check(self, name: str, record: LayerRecord, layer: Any, state: State) -> None:
        """Raise ValueError unless kernels can trust the index, and the integers are its own."""
        check_absent(name, record, layer.topology, state[under(name, "integers")])
        layer.check_named(name, {key: state[under(name, key)] for key in layer.state_dict()})
