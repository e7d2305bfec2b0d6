"""What files know of a storage: how they describe a layer in it, make it again, and check its numbers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from cutwork.files.record import LayerRecord
from cutwork.ops.topology import Topology
from cutwork.sparsity.layout import Layout
from cutwork.text import label

State = dict[str, Any]
# What a layer needs in a state dict: of each tensor the dtype, None for any float, and the sizes, None for any.
Needed = Mapping[str, tuple[torch.dtype | None, Sequence[int | None]]]

# How large a tile may be of which none is kept, so that no number of the file speaks for its size.
LARGEST_ABSENT = 2**20


class Storage(ABC):
    """One way for the numbers of a layer to lie, as files see it."""

    @abstractmethod
    def holds(self, layer: nn.Module) -> bool:
        """Say whether a layer is in this storage."""

    @abstractmethod
    def what_is_tied(self, layer: Any) -> nn.Module:
        """Return what the layers have in common that share one weight."""

    @abstractmethod
    def describe(self, name: str, layer: Any, tied: list[str]) -> LayerRecord:
        """Describe a layer of this name, and those tied to it."""

    @abstractmethod
    def build(self, name: str, record: LayerRecord, model: nn.Module, state: State) -> None:
        """Make a dense layer, and those tied to it, what a record says, with masks of a state dict.

        One that is so already gets room for the numbers, unless `load_state_dict` gives it. Raises ValueError where
        the state dict does not have what the layer needs.
        """

    @abstractmethod
    def check(self, name: str, record: LayerRecord, layer: Any, state: State) -> None:
        """Raise ValueError unless a state dict has a sound mask for a layer, built as its record says."""


def under(name: str, key: str) -> str:
    """Return the key in a state dict of something inside the module of this name."""
    return f"{name}.{key}" if name else key


def take_own(
    name: str, record: LayerRecord, state: State, needed: Needed, device: torch.device, *, inside: str = ""
) -> dict[str, Tensor]:
    """Return what a state dict has for a layer, or for what is `inside` it, on a device; ValueError unless it fits."""
    prefix = under(name, inside)
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if differing := sorted(set(own) ^ set(needed)):
        raise ValueError(
            f"{prefix}{differing[0]} is {'unknown' if differing[0] in own else 'missing'} in the checkpoint, where "
            f"{label(name)} is {record}; save the model again"
        )
    for key, (dtype, sizes) in needed.items():
        check_outline(f"{prefix}{key}", own[key], dtype, sizes)
    return {key: value.to(device) for key, value in own.items()}


def check_outline(name: str, value: object, dtype: torch.dtype | None, sizes: Sequence[int | None]) -> None:
    """Raise ValueError unless a value is a tensor of this dtype and these sizes."""
    is_right = (
        isinstance(value, Tensor)
        and (value.is_floating_point() if dtype is None else value.dtype == dtype)
        and value.ndim == len(sizes)
        and all(size in (None, found) for size, found in zip(sizes, value.shape, strict=True))
    )
    if not is_right:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else "no tensor"
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise ValueError(
            f"{name} is {found} in the checkpoint, but the model needs {dtype or 'floating point'} [{wanted}]; build "
            "the model that was saved, in the same dtypes"
        )


def check_absent(name: str, record: LayerRecord, index: Topology, numbers: Tensor) -> None:
    """Raise ValueError where nothing is kept of tiles so large that only kept ones could account for their size."""
    outputs, inputs = index.shape
    if not numbers.numel() and index.rows * index.columns > max(LARGEST_ABSENT, outputs * inputs):
        raise ValueError(
            f"{label(name)} keeps no unit, and those of {record.pattern} are larger than it is; save it with smaller "
            "ones"
        )


def need_energies(record: LayerRecord, layout: Layout) -> Needed:
    """Return what the mask of a layer needs to estimate gradients; nothing where it does not."""
    if not record.options.get("estimate"):
        return {}
    outputs, inputs = layout.channels
    return {"energy_in": (None, [inputs]), "energy_out": (None, [outputs])}


def take_shared_weight(name: str, record: LayerRecord, model: nn.Module) -> nn.Parameter:
    """Return the weight of a dense layer; raise ValueError where not all have it that should."""
    weights = [cast(nn.Parameter, model.get_submodule(each).weight) for each in (name, *record.tied)]
    if any(weight is not weights[0] for weight in weights):
        raise ValueError(
            f"{label(name)} shares its weight with {', '.join(record.tied)} in the checkpoint, but not in the model; "
            "build the model that was saved"
        )
    return weights[0]
