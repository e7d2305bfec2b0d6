"""What makes the layers of a model sparse, as data: read off one model, and built into another."""

from dataclasses import dataclass
from typing import Any, final

from torch import nn

from cutwork.files.compressed import CompressedStorage
from cutwork.files.dense import DenseStorage
from cutwork.files.int8 import Int8Storage
from cutwork.files.model_state import check_tensors
from cutwork.files.record import COMPRESSED, DENSE, INT8, LayerRecord, describe_difference, read_records
from cutwork.files.schema import check_form
from cutwork.files.skeleton import skeleton
from cutwork.files.storage import State, Storage
from cutwork.layers.attention import OpenAttention, open_attention
from cutwork.layers.swap import Candidate, can_swap, candidates
from cutwork.text import label

STORAGES: dict[str, Storage] = {DENSE: DenseStorage(), COMPRESSED: CompressedStorage(), INT8: Int8Storage()}


@final
@dataclass(frozen=True)
class Structure:
    """The sparse layers of a model, by the first name of each, and its attentions that are open."""

    layers: dict[str, LayerRecord]
    attentions: list[str]

    @classmethod
    def of(cls, model: nn.Module) -> "Structure":
        """Describe a model."""
        sharers: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules():
            for storage in STORAGES.values():
                if storage.holds(module):
                    sharers.setdefault(storage.what_is_tied(module), []).append(name)
        records = {names[0]: _describe(names[0], names[1:], model) for names in sharers.values()}
        return cls(records, [name for name, module in _all_modules(model) if isinstance(module, OpenAttention)])

    @classmethod
    def read(cls, layers: dict[str, Any], attentions: list[str]) -> "Structure":
        """Make a structure of JSON again; raise ValueError where it is none."""
        check_form(attentions, [str], "attentions")
        return cls(read_records(layers), attentions)

    def rehearse(self, model: nn.Module, state: State) -> nn.Module:
        """Return what a model will be after `build`, without its numbers; raise ValueError where it cannot be built.

        Only types and shapes of the state dict count, so its tensors may be on the meta device.
        """
        self._check_layers(model)
        built = skeleton(model)
        self.build(built, state)
        check_tensors(state, built.state_dict(keep_vars=True))
        return built

    def check(self, rehearsed: nn.Module, state: State) -> None:
        """Raise ValueError unless each mask in a state dict is sound for its layer in what `rehearse` has returned."""
        for name, record in self.layers.items():
            STORAGES[record.storage].check(name, record, rehearsed.get_submodule(name), state)

    def build(self, model: nn.Module, state: State) -> None:
        """Make those layers sparse that are dense, with masks and parameters of their own from a state dict."""
        for name, module in list(model.named_modules()):
            if name in self.attentions and type(module) is nn.MultiheadAttention:
                open_attention(module)
        for name, record in self.layers.items():
            STORAGES[record.storage].build(name, record, model, state)

    def _check_layers(self, model: nn.Module) -> None:
        """Raise ValueError unless the layers of a model are dense and can be sparse, or are sparse in just this way."""
        present, found = Structure.of(model).layers, candidates(model)
        if more := sorted(set(present) - set(self.layers)):
            raise ValueError(
                f"{label(more[0])} is {present[more[0]]} in the model, but not sparse in the checkpoint; load into a "
                "dense model, or bake() this one"
            )
        modules = dict(_all_modules(model))
        for name in self.attentions:
            if type(modules.get(name)) not in (nn.MultiheadAttention, OpenAttention):
                raise ValueError(
                    f"{label(name)} is an attention in the checkpoint, but none in the model; build the model that was "
                    "saved"
                )
        for name, record in self.layers.items():
            if name in present:
                if present[name] != record:
                    raise ValueError(describe_difference(name, record, present[name]))
                continue
            for each in (name, *record.tied):
                _check_candidate(each, record, found.get(each), self.attentions)


def _describe(name: str, tied: list[str], model: nn.Module) -> LayerRecord:
    layer = model.get_submodule(name)
    storage = next(storage for storage in STORAGES.values() if storage.holds(layer))
    return storage.describe(name, layer, tied)


def _check_candidate(name: str, record: LayerRecord, found: Candidate | None, attentions: list[str]) -> None:
    """Raise ValueError where a dense layer of a model cannot become what a record says."""
    can_be = (
        found is not None
        and can_swap(found.kind)
        and found.layout.transposed == record.transposed
        and found.attention in (None, *attentions)
        and not (issubclass(found.kind, nn.Conv2d) and (record.storage == INT8 or record.converts))
    )
    if found is None or not can_be:
        raise ValueError(
            f"{label(name)} is {record} in the checkpoint, but no layer of this model that can be; build the model "
            "that was saved, without what wraps it (as in wrapped.module)"
        )
    if found.obstacle:
        raise ValueError(f"{label(name)} is {record} in the checkpoint, but cannot be: {found.obstacle}")


def _all_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))
