"""The kept tiles alone, multiplied by our kernels."""

from collections.abc import Sequence
from typing import final

from torch import nn

from cutwork.layers.compressed import Compressed
from cutwork.layers.storage import compress, why_not_compress
from cutwork.speed.forms.base import Form


@final
class Tiles(Form):
    """The kept tiles, in the precision of the model."""

    def is_form_of(self, layer: nn.Module) -> bool:
        return isinstance(layer, Compressed) and not vars(layer).get("converts")

    def why_not(self, name: str, layer: nn.Module) -> str:
        return why_not_tile(layer)

    def give(self, model: nn.Module, names: Sequence[str], *, training: bool) -> None:
        give_tiles(model, names)


def why_not_tile(layer: nn.Module) -> str:
    """Say why a sparse layer cannot be tiles, and what to do; empty where it can."""
    return "" if isinstance(layer, Compressed) else why_not_compress(layer)


def give_tiles(model: nn.Module, names: Sequence[str]) -> None:
    """Store of layers only the kept tiles, in place."""
    layers = {name: model.get_submodule(name) for name in names}
    compress({name: layer for name, layer in layers.items() if not isinstance(layer, Compressed)})
