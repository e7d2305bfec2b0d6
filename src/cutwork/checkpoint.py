"""Checkpoints: a sparse model, and what else its training needs to go on, in one safetensors file without pickle."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn
from torch.optim import Optimizer

from cutwork.layers.int8 import Int8Linear
from cutwork.layers.swap import SparseLayer, sparse_layers
from cutwork.sharding import is_sharded
from cutwork.sparsifier import STATE_KEY, Sparsifier
from cutwork.sparsity import Fixed
from cutwork.structure import LayerRecord, State, Structure, under
from cutwork.tensor_file import read_description, read_file, write_file
from cutwork.tensor_tree import TensorTable

# Version 2 says of each layer how it is stored; before that there was dense storage only.
VERSION = 2
READABLE = (1, 2)

Masks = Mapping[int, tuple[str, Tensor]]


@final
@dataclass(frozen=True)
class Checkpoint:
    """What `load` returns: the sparse layers of the model, as `Sparsifier` takes them, and what was saved besides."""

    layers: dict[str, SparseLayer]
    extra: dict[str, Any]


@final
@dataclass(frozen=True)
class Description:
    """What a checkpoint says of itself; `steps_done` has a number for each sparsifier."""

    version: int
    layers: dict[str, LayerRecord]
    attentions: list[str]
    optimizers: list[str]
    steps_done: list[int]


def save(
    model: nn.Module,
    path: str | Path,
    *,
    sparsifier: Sparsifier | Sequence[Sparsifier] | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Save a model and, to go on training it, its sparsifier and its optimizer, or several of them.

    Under a fixed mask only what is kept is stored, of weights and of optimizer state, as long as the rest is zero (the
    sign of these zeros is lost). `extra` takes numbers, text, tensors, and lists, tuples and dicts of these: the
    epoch, the state of a learning-rate scheduler, and `torch.get_rng_state()`, which is not saved unless given here.
    Numbers of numpy come back as Python's, paths as text.
    A process killed while it saves leaves the old file as it was. Where several train one model, one of them saves.

    >>> import tempfile
    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> sparsifier = sparsify(model, "block:16", density=0.25)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, f"{folder}/model.safetensors", extra={"epoch": 3})
    ...     checkpoint = load(f"{folder}/model.safetensors", nn.Sequential(nn.Linear(64, 64)))
    >>> checkpoint.extra
    {'epoch': 3}
    >>> checkpoint.layers["0"].sparsity
    Fixed(block:16, density 0.25)
    """
    sparsifiers, optimizers = _listed(sparsifier), _listed(optimizer)
    _check_model("save", model)
    _check_belong("save", model, sparsifiers, optimizers)
    state = model.state_dict(keep_vars=True)
    masks = {
        id(layer.trained): (under(name, "sparsity.mask"), layer.sparsity.mask)
        for name, layer in sparse_layers(model).items()
        if isinstance(layer.sparsity, Fixed)
    }
    table = TensorTable({})
    description = {
        "version": VERSION,
        **asdict(Structure.of(model)),
        "model": {key: table.put(value, key, masks.get(id(value))) for key, value in state.items()},
        "optimizers": [
            _put_optimizer(table, one, f"@optimizer/{place}", _first_names(state), masks)
            for place, one in enumerate(optimizers)
        ],
        "sparsifiers": [
            {
                "layers": list(one.layers),
                "method": _method_of(one),
                "state": table.put(one.state_dict(), f"@sparsifier/{place}"),
            }
            for place, one in enumerate(sparsifiers)
        ],
        "extra": table.put(extra or {}, "@extra"),
    }
    write_file(Path(path), table.tensors, description)


def load(
    path: str | Path,
    model: nn.Module,
    *,
    sparsifier: Sparsifier | Sequence[Sparsifier] | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> Checkpoint:
    """Load a checkpoint into a model of the same architecture and dtypes, on whatever device it is.

    Layers that are dense become sparse as the checkpoint says; those that are sparse must be so in the same way. For
    inference that is all. To resume, give the sparsifier and the optimizer too, made as for a new run: the one by
    `sparsify`, or from what a first `load` has returned by `Sparsifier(checkpoint.layers, method, seed=seed)`; the
    other after the layers are sparse. If anything is wrong, nothing has changed.
    """
    tensors, description = read_file(Path(path))
    _check_version(path, description)
    table = TensorTable(tensors)
    structure = _structure(description)
    state: State = {key: table.take(node) for key, node in description["model"].items()}
    sparsifiers, optimizers = _listed(sparsifier), _listed(optimizer)
    _check_model("load", model)
    structure.check(model)
    found = structure.state_of(model)
    structure.check_indices(model, state)
    _check_tensors(path, structure.known_part(model, state), structure.comparable(found))
    structure.check_masks(state)
    _check_belong("load", model, sparsifiers, optimizers)
    sparsifier_states = _take_sparsifiers(table, description["sparsifiers"], sparsifiers)
    optimizer_states = _take_optimizers(table, description["optimizers"], optimizers, _first_names(found))
    extra = table.take(description["extra"])

    structure.build(model, state)
    model.load_state_dict(state)
    for one_optimizer, one_state in zip(optimizers, optimizer_states, strict=True):
        one_optimizer.load_state_dict(one_state)
    for one_sparsifier, one_state in zip(sparsifiers, sparsifier_states, strict=True):
        one_sparsifier.load_state_dict(one_state)
    layers = sparse_layers(model)
    return Checkpoint({name: layers[name] for name in structure.layers}, extra)


def describe(path: str | Path) -> Description:
    """Return what a checkpoint holds, from the head of the file alone.

    >>> import tempfile
    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> sparsifier = sparsify(model, "2:4")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, f"{folder}/model.safetensors", sparsifier=sparsifier)
    ...     description = describe(f"{folder}/model.safetensors")
    >>> print(description.layers["0"], description.steps_done)
    fixed 2:4 at density 0.5, estimate=False [0]
    """
    description = read_description(Path(path))
    _check_version(path, description)
    structure = _structure(description)
    return Description(
        version=description["version"],
        layers=structure.layers,
        attentions=structure.attentions,
        optimizers=[saved["type"] for saved in description["optimizers"]],
        steps_done=[saved["state"]["steps_done"] for saved in description["sparsifiers"]],
    )


def _structure(description: State) -> Structure:
    layers = {name: LayerRecord(**record) for name, record in description["layers"].items()}
    return Structure(layers, description["attentions"])


def _put_optimizer(table: TensorTable, optimizer: Optimizer, name: str, names: dict[int, str], masks: Masks) -> State:
    whole = optimizer.state_dict()
    held = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    places = chain.from_iterable(group["params"] for group in whole["param_groups"])
    mask_of = {place: masks.get(id(parameter)) for place, parameter in zip(places, held, strict=True)}
    rest = {key: value for key, value in whole.items() if key != "state" and not str(key).startswith(STATE_KEY)}
    return {
        "type": type(optimizer).__name__,
        "parameters": _names_held(optimizer, names),
        "state": [
            [place, table.put(value, f"{name}/{place}", mask_of.get(place))] for place, value in whole["state"].items()
        ],
        "rest": table.put(rest, name),
    }


def _take_optimizers(
    table: TensorTable, saved: list[State], optimizers: list[Optimizer], names: dict[int, str]
) -> list[State]:
    if not optimizers:
        return []
    wanted, given = [one["type"] for one in saved], [type(one).__name__ for one in optimizers]
    if wanted != given:
        raise ValueError(
            f"load: the checkpoint holds {', '.join(wanted) or 'no optimizer'}; got {', '.join(given)}; give the same "
            "in the same order, or none"
        )
    for one, optimizer in zip(saved, optimizers, strict=True):
        if (found := _names_held(optimizer, names)) != one["parameters"]:
            pairs = zip_longest(_flat(one["parameters"]), _flat(found), fillvalue="the end")
            old, new = next(pair for pair in pairs if pair[0] != pair[1])
            raise ValueError(
                f"load: the {one['type']} given trains other parameters than the one saved, first {new} where that had "
                f"{old}; build it over the same ones in the same groups, after their layers are sparse"
            )
    return [
        {"state": {place: table.take(node) for place, node in one["state"]}, **table.take(one["rest"])} for one in saved
    ]


def _take_sparsifiers(table: TensorTable, saved: list[State], sparsifiers: list[Sparsifier]) -> list[State]:
    if sparsifiers and len(sparsifiers) != len(saved):
        raise ValueError(
            f"load: the checkpoint holds {len(saved)} sparsifiers; got {len(sparsifiers)}; give as many, or none"
        )
    for one, sparsifier in zip(saved, sparsifiers, strict=False):
        if differing := sorted(set(one["layers"]) ^ set(sparsifier.layers)):
            raise ValueError(
                f"load: the sparsifier saved and the one given move different layers; they differ in "
                f"{', '.join(differing[:8])}; make it as for the saved run"
            )
        # Files of earlier days do not say it.
        if one.get("method", _method_of(sparsifier)) != _method_of(sparsifier):
            raise ValueError(
                f"load: the sparsifier saved moves masks by {one['method']}, the one given by "
                f"{_method_of(sparsifier)}; sparsify() with the same method, or load without it and begin anew"
            )
        if missing := set(sparsifier.state_dict()) - set(one["state"]):
            raise ValueError(f"load: the sparsifier was saved without {', '.join(missing)}; make this with track=False")
    return [table.take(one["state"]) for one in saved[: len(sparsifiers)]]


def _method_of(sparsifier: Sparsifier) -> str:
    return type(sparsifier.method).__name__


def _check_version(path: str | Path, description: State) -> None:
    if description["version"] not in READABLE:
        raise ValueError(
            f"{path} is a checkpoint of version {description['version']}; this cutwork reads versions up to {VERSION}; "
            "use the one that wrote it, or a newer one"
        )


def _check_model(what: str, model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            raise ValueError(
                f"{what}: {name or 'the model itself'} computes in int8, from which its weights do not come back; save "
                "before pack(precisions=['int8']), and pack again after loading"
            )
    for key, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and is_sharded(value):
            raise ValueError(
                f"{what}: {key} is sharded over processes; use torch.distributed.checkpoint, which takes the model's "
                "state dict as it is, or gather it first with get_model_state_dict and full_state_dict=True"
            )
        if isinstance(value, Tensor) and value.is_meta:
            raise ValueError(f"{what}: {key} is on the meta device and has no memory; give it some with to_empty()")


def _check_belong(what: str, model: nn.Module, sparsifiers: list[Sparsifier], optimizers: list[Optimizer]) -> None:
    """Raise ValueError if a sparsifier is of another model, or an optimizer follows one that is not given."""
    layers = sparse_layers(model)
    for sparsifier in sparsifiers:
        for name, layer in sparsifier.layers.items():
            if layers.get(name) is not layer:
                raise ValueError(
                    f"{what}: the sparsifier moves {name or 'the model itself'}, which is no sparse layer of this "
                    "model; give the model that was sparsified, without what wraps it (as in wrapped.module)"
                )
    given = {sparsifier.state_key for sparsifier in sparsifiers}
    for optimizer in optimizers:
        if any(str(key).startswith(STATE_KEY) and key not in given for key in optimizer.state_dict()):
            raise ValueError(
                f"{what}: {type(optimizer).__name__} is attached to a sparsifier that is not given, whose count of the "
                "steps would be lost; pass sparsifier=... too"
            )


def _check_tensors(path: str | Path, saved: State, found: State) -> None:
    saved, found = _outlines(saved), _outlines(found)
    differing = [key for key in {**saved, **found} if saved.get(key) != found.get(key)]
    if differing:
        key = differing[0]
        raise ValueError(
            f"{path} was saved from another model: {len(differing)} of {len(saved)} tensors differ, first {key}: "
            f"{saved.get(key, 'nothing')} in the checkpoint, {found.get(key, 'nothing')} in the model; build the model "
            "that was saved, in the same dtypes"
        )


def _outlines(state: State) -> dict[str, str]:
    """Say what must agree of each tensor: its dtype, its shape, and which other one is the same."""
    first = _first_names(state)
    outlines = {}
    for key, value in state.items():
        tied = "" if first[id(value)] == key else f" tied to {first[id(value)]}"
        outlines[key] = f"{value.dtype} {list(value.shape)}{tied}" if isinstance(value, Tensor) else "no tensor"
    return outlines


def _first_names(state: State) -> dict[int, str]:
    """Return the name of each tensor by its id; of several the first in the alphabet."""
    names: dict[int, str] = {}
    for key in sorted(state):
        names.setdefault(id(state[key]), key)
    return names


def _names_held(optimizer: Optimizer, names: dict[int, str]) -> list[list[str | None]]:
    return [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]


def _flat(groups: list[list[str | None]]) -> list[str]:
    """Return the names with a word where each group begins."""
    return [
        str(name or "a parameter of another model") for group in groups for name in ("the begin of a group", *group)
    ]


def _listed(one_or_several: Any) -> list[Any]:
    if one_or_several is None:
        return []
    return list(one_or_several) if isinstance(one_or_several, Sequence) else [one_or_several]
