"""The kept tiles of a linear layer, rounded to int8, for inference."""

from collections.abc import Sequence
from typing import final

from torch import nn

from cutwork.layers.compressed import CompressedLinear
from cutwork.layers.int8 import Int8Linear
from cutwork.layers.swap import exchange
from cutwork.speed.forms.base import Form
from cutwork.speed.forms.tiles import give_tiles
from cutwork.speed.forms.tiles_bf16 import why_not_tile_linear


@final
class TilesInt8(Form):
    """The kept tiles in int8, as another module in the place of the layer; inputs are rounded row by row."""

    precision = "int8"
    trains = False

    def is_form_of(self, layer: nn.Module) -> bool:
        return isinstance(layer, Int8Linear)

    def why_not(self, name: str, layer: nn.Module) -> str:
        if not name:
            return "an int8 layer takes the place of another in a model; put it into a module, such as nn.Sequential"
        return why_not_tile_linear(layer)

    def give(self, model: nn.Module, names: Sequence[str], *, training: bool) -> None:
        give_tiles(model, names)
        for name in names:
            layer = model.get_submodule(name)
            assert isinstance(layer, CompressedLinear)
            exchange(model, layer, Int8Linear.of(layer))
