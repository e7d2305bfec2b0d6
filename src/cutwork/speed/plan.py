"""A plan: which form each layer should take, what it was measured to take in each, and why."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import final

from torch import nn

from cutwork.layers.swap import SparseLayer, sparse_layers, why_not_find
from cutwork.speed.forms import DENSE, FORMS
from cutwork.text import in_columns, label

HEAD = ("layer", "shape", "pattern", "density", "form", "gain", "reason")
FLUSH = "<<<><><"


@final
@dataclass(frozen=True)
class LayerPlan:
    """What one layer, with those that share its weight, was measured to take in each form, and the form chosen.

    `seconds` are of one call; of the slowest call compared with dense, if several shapes were measured. They are not
    steady if their runs lie far apart, as on a machine that is busy with something else.
    """

    layer: str
    shape: tuple[int, ...]
    pattern: str
    density: float
    input: tuple[int, ...]
    calls: int
    seconds: dict[str, float]
    form: str
    reason: str
    is_steady: bool = True

    @property
    def gain(self) -> float | None:
        """Return how many times faster than dense the form is, if both were measured."""
        if self.form not in self.seconds or DENSE not in self.seconds:
            return None
        return self.seconds[DENSE] / self.seconds[self.form]


@final
@dataclass(frozen=True)
class Plan:
    """A row for each sparse layer, in the order of the model; `apply` gives the layers of a model their forms."""

    rows: tuple[LayerPlan, ...]
    training: bool

    def apply(self, model: nn.Module) -> None:
        """Give the layers of a model, in place, the forms chosen for them."""
        layers = sparse_layers(model)
        if not layers:
            raise ValueError(why_not_find(model))
        if missing := [row.layer for row in self.rows if row.layer not in layers]:
            raise ValueError(
                f"the plan is for a model with a sparse layer {missing[0]!r}; this one has none; make a plan "
                "for this model"
            )
        for row in self.rows:
            _check_alike(row, layers[row.layer])
        groups = group_by_weight(layers)
        check_free(layers)
        for name, form in FORMS.items():
            chosen = [layer for row in self.rows if row.form == name for layer in groups[row.layer]]
            form.give(model, chosen, training=self.training)

    def __str__(self) -> str:
        """Write the plan as a table."""
        return "\n".join(in_columns([HEAD, *map(_cells, self.rows)], FLUSH))

    def to_json(self) -> str:
        """Write the plan as JSON, with exact numbers."""
        return json.dumps(asdict(self), indent=2)


def group_by_weight(layers: Mapping[str, SparseLayer]) -> dict[str, list[str]]:
    """Return the names of layers that share a weight, by the first of them."""
    first: dict[int, str] = {}
    groups: dict[str, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(first.setdefault(id(layer.sparsity), name), []).append(name)
    return groups


def check_free(layers: Mapping[str, SparseLayer]) -> None:
    """Raise ValueError where a sparsifier follows an optimizer that holds the parameter of a layer."""
    for name, layer in layers.items():
        if layer.sparsity.is_followed:
            raise ValueError(
                f"{label(name)} is moved by a sparsifier that follows an optimizer, which holds the "
                "parameter that would be replaced; detach() the sparsifier first, and attach() it to a new optimizer "
                "afterwards"
            )


def _check_alike(row: LayerPlan, layer: SparseLayer) -> None:
    """Raise ValueError where a layer is not the one that was measured."""
    sparsity = layer.sparsity
    found = tuple(sparsity.mask_matrix().shape), str(sparsity.pattern)
    if found != (row.shape, row.pattern):
        (shape, pattern), name = found, label(row.layer)
        raise ValueError(
            f"{name} was planned as {'x'.join(map(str, row.shape))} {row.pattern}; in this model it is "
            f"{'x'.join(map(str, shape))} {pattern}; make a plan for this model"
        )


def _cells(row: LayerPlan) -> list[str]:
    return [
        label(row.layer),
        "x".join(map(str, row.shape)),
        row.pattern,
        f"{row.density:.4g}",
        row.form,
        "" if row.gain is None else f"{'' if row.is_steady else '~'}{row.gain:.2f}x",
        row.reason,
    ]
