"""The forms that a sparse layer can take, by name. A form of one's own is one class and one row."""

from collections.abc import Iterable

from torch import nn

from cutwork.speed.forms.base import Form as Form
from cutwork.speed.forms.dense import Dense
from cutwork.speed.forms.tiles import Tiles
from cutwork.speed.forms.tiles_bf16 import TilesBf16
from cutwork.speed.forms.tiles_int8 import TilesInt8

# What every form is compared with, and what compressed layers are trained in.
DENSE, TILES = "dense", "tiles"
# What a layer has that no form knows.
OTHER = "other"

FORMS: dict[str, Form] = {
    "dense": Dense(),
    "tiles": Tiles(),
    "tiles-bf16": TilesBf16(),
    "tiles-int8": TilesInt8(),
}


def form_of(layer: nn.Module) -> str:
    """Return the form that a sparse layer has, or `OTHER`."""
    return next((name for name, form in FORMS.items() if form.is_form_of(layer)), OTHER)


def find_precisions(forms: Iterable[str]) -> list[str | None]:
    """Return the precision of each form, None where it is the model's own."""
    return [FORMS[form].precision if form in FORMS else None for form in forms]
