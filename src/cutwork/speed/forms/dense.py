"""The whole weight, multiplied by PyTorch's own kernels."""

from collections.abc import Sequence
from typing import final

from torch import nn

from cutwork.layers.compressed import Compressed
from cutwork.layers.masked import MaskedLayer
from cutwork.layers.storage import expand, why_not_expand
from cutwork.sparsity.fixed import Fixed
from cutwork.sparsity.rest import Rest
from cutwork.speed.forms.base import Form


@final
class Dense(Form):
    """The whole weight, which layers that do not train read as it lies there while it is zero outside the mask."""

    def is_form_of(self, layer: nn.Module) -> bool:
        return isinstance(layer, MaskedLayer)

    def why_not(self, name: str, layer: nn.Module) -> str:
        return why_not_expand(layer) if isinstance(layer, Compressed) else ""

    def give(self, model: nn.Module, names: Sequence[str], *, training: bool) -> None:
        layers = {name: model.get_submodule(name) for name in names}
        expand({name: layer for name, layer in layers.items() if isinstance(layer, Compressed)})
        for layer in layers.values():
            if isinstance(layer, MaskedLayer):
                layer.sparsity.rest = Rest() if isinstance(layer.sparsity, Fixed) and not training else None
