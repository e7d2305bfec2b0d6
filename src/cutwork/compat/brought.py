"""A sparse model that other software trained: an ordinary state dict, and the masks behind its zeros."""

from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from typing import final

from torch import Tensor

from cutwork.costs.zeros import find_order
from cutwork.layers.attention import PROJECTIONS
from cutwork.text import counted

IN_PROJECTION = "in_proj_weight"


@final
@dataclass(frozen=True)
class Brought:
    """Weights and masks of a model from elsewhere, ready for a model of the same architecture.

    `weights` is an ordinary state dict with zeros outside the masks, and `masks` has a mask for each layer, shaped like
    its weight. `patterns` names for each the strictest pattern that allows it; all other layers stay dense. So

        model.load_state_dict(brought.weights)
        sparsifier = cutwork.sparsify(model, brought.patterns, masks=brought.masks)

    makes a model of the architecture what it was elsewhere. `origin` says what wrote it, `left_out` why a mask that was
    found is not among these.
    """

    origin: str
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    patterns: dict[str, str]
    left_out: dict[str, str]

    def __str__(self) -> str:
        """Say what was found."""
        kinds = ", ".join(sorted({*self.patterns.values()} - {"dense"}))
        return f"{counted(len(self.masks), 'mask')} of {self.origin}, in {kinds}"


def bring(
    origin: str,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    *,
    patterns: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> Brought:
    """Fold masks, given by the names of parameters, into weights; raise ValueError where one fits no weight.

    Masks that keep everything are no masks. Those of parameters that are no weight of a layer, such as a bias, are
    folded in and left out.
    """
    folded, out = fold_masks(weights, masks), dict(left_out or {})
    by_layer: dict[str, Tensor] = {}
    for name, mask in masks.items():
        kept = mask.to(weights[name].device) != 0
        layer, _, last = name.rpartition(".")
        if kept.all():
            continue
        if not kept.any():
            out[name] = "it keeps nothing at all"
        elif last == "weight" and kept.ndim in (2, 4):
            by_layer[layer] = kept
        elif last == IN_PROJECTION:
            parts = (f"{layer}.{part}" if layer else part for part in PROJECTIONS)
            by_layer |= {part: piece for part, piece in zip(parts, kept.chunk(3), strict=False) if not piece.all()}
        else:
            out[name] = "it is no weight of a linear layer or 2-d convolution; its zeros are in the weights"
    if not by_layer:
        raise ValueError(
            f"no mask of {origin} leaves a linear layer or 2-d convolution sparse"
            + "".join(f"; {name}: {reason}" for name, reason in list(out.items())[:1])
        )
    named = {layer: (patterns or {}).get(layer) or find_order(mask).trains_as for layer, mask in by_layer.items()}
    return Brought(
        origin,
        folded,
        by_layer,
        {"*": "dense", **{escape(layer): pattern for layer, pattern in named.items()}},
        out,
    )


def fold_masks(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with zeros where masks, by the names of the weights, are; ValueError where one fits no weight."""
    folded = dict(weights)
    for name, mask in masks.items():
        if name not in weights:
            raise ValueError(
                f"there is a mask for {name}, but no weight of that name; there are {', '.join(list(weights)[:5])}, "
                "...; give the weights that the masks were made for"
            )
        weight = weights[name]
        if mask.shape != weight.shape:
            raise ValueError(
                f"the mask of {name} has the shape {list(mask.shape)}, its weight {list(weight.shape)}; give the "
                "weights that the masks were made for"
            )
        # Not by a product: what is not finite would stay.
        folded[name] = weight.masked_fill(mask.to(weight.device) == 0, 0)
    return folded
