"""Noticing that masks should move, or units be left out, but no sparsifier is attached."""

import logging
from dataclasses import dataclass
from typing import Any, final
from weakref import ReferenceType, WeakKeyDictionary, ref

from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from cutwork.layers.swap import SparseLayer
from cutwork.sparsity.base import Sparsity
from cutwork.training.attachment import holds

logger = logging.getLogger(__name__)

# After so many updates it must have been forgotten.
MANY_STEPS = 500


@final
@dataclass
class _Watched:
    """A layer, and how many updates its weight has seen that nobody followed."""

    name: str
    layer: "ReferenceType[SparseLayer]"
    steps: int = 0


# Known by their masks, and forgotten with them. Hooks on the weight itself would be lost where the model is cast.
_WATCHED: WeakKeyDictionary[Sparsity, _Watched] = WeakKeyDictionary()


def expect_attach(name: str, layer: SparseLayer) -> None:
    """Warn once, after many updates of a layer, that no sparsifier moves its mask, unless one is attached by then."""
    _WATCHED[layer.sparsity] = _Watched(name, ref(layer))


def stop_expecting(layer: SparseLayer) -> None:
    """Take note that a sparsifier is attached to this layer."""
    _WATCHED.pop(layer.sparsity, None)


def _notice(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for sparsity, watched in list(_WATCHED.items()):
        layer = watched.layer()
        if layer is None or not isinstance(layer, SparseLayer) or layer.sparsity is not sparsity:
            del _WATCHED[sparsity]
        elif holds(optimizer, layer.trained):
            watched.steps += 1
            if watched.steps == MANY_STEPS:
                del _WATCHED[sparsity]
                logger.warning(
                    "%s was updated %d times, but no sparsifier is attached, so its mask does not move and nothing is "
                    "left out of it; call sparsifier.attach(optimizer) on what sparsify() has returned",
                    watched.name or "the model",
                    MANY_STEPS,
                )


register_optimizer_step_post_hook(_notice)
