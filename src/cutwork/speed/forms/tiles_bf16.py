"""The kept tiles of a linear layer, rounded to bfloat16."""

from collections.abc import Sequence
from typing import final

from torch import nn

from cutwork.layers.compressed import Compressed, CompressedLinear
from cutwork.layers.linear import SparseConv1D, SparseLinear
from cutwork.speed.forms.base import Form
from cutwork.speed.forms.tiles import give_tiles, why_not_tile

NO_CONVOLUTIONS = "convolutions have kernels for float32 only"


@final
class TilesBf16(Form):
    """The kept tiles in bfloat16; inputs are rounded as they come, and results are what the model computes with."""

    precision = "bf16"

    def is_form_of(self, layer: nn.Module) -> bool:
        return isinstance(layer, Compressed) and bool(vars(layer).get("converts"))

    def why_not(self, name: str, layer: nn.Module) -> str:
        return why_not_tile_linear(layer)

    def give(self, model: nn.Module, names: Sequence[str], *, training: bool) -> None:
        give_tiles(model, names)
        for name in names:
            model.get_submodule(name).bfloat16().converts = True  # pyrefly: ignore


def why_not_tile_linear(layer: nn.Module) -> str:
    """Say why a sparse layer cannot be tiles in fewer bits, and what to do; empty where it can."""
    is_linear = isinstance(layer, SparseLinear | SparseConv1D | CompressedLinear)
    return why_not_tile(layer) or ("" if is_linear else NO_CONVOLUTIONS)
