"""Checkpoints: a sparse model, and what else its training needs to go on, in one safetensors file without pickle."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.optim import Optimizer

from cutwork.distributed import is_sharded
from cutwork.files.schema import COUNT, Named, Number, check_form
from cutwork.files.skeleton import skeleton
from cutwork.files.structure import LayerRecord, State, Structure, under
from cutwork.files.tensor_file import read_description, read_file, write_file
from cutwork.files.tensor_tree import TensorTable
from cutwork.layers.swap import SparseLayer, sparse_layers
from cutwork.patterns import Shape
from cutwork.sparsity.base import Fixed
from cutwork.training.sparsifier import STATE_KEY, Sparsifier

# Version 2 says of each layer how it is stored; before that there was dense storage only. Version 3 knows layers in
# int8, and such as compute in bfloat16 alone.
VERSION = 3
READABLE = (1, 2, 3)

# What the description must look like; what stands for values of any kind is checked by the table of tensors.
FORM = {
    "version": COUNT,
    "layers": Named(object),
    "attentions": [str],
    "model": Named(object),
    "optimizers": [
        {
            "type": str,
            "parameters": [[(str, None)]],
            "state": [[(COUNT, str), Named(object)]],
            "rest": Named(object),
        }
    ],
    "sparsifiers": [{"layers": [str], "method?": str, "state": {"steps_done": COUNT, "exploration?": object}}],
    "extra": Named(object),
}
# How many times larger than itself a file may become in memory, where masks of bits become bytes, and how many times
# larger than the model: what is not kept is not in the file, neither of weights nor of what an optimizer remembers.
UNFOLDS, COPIES = 10, 16

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
        id(layer.trained): (under(name, "sparsity.mask"), state[under(name, "sparsity.mask")])
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
    device: str | torch.device | None = None,
) -> Checkpoint:
    """Load a checkpoint into a model of the same architecture and dtypes, on whatever device it is.

    A model on the meta device, which has no memory, gets all its tensors from the file, on `device`: so one whose
    dense form does not fit is loaded compressed as it was saved. Build optimizers afterwards, and load again to resume.

    Layers that are dense become sparse as the checkpoint says; those that are sparse must be so in the same way. For
    inference that is all. To resume, give the sparsifier and the optimizer too, made as for a new run: the one by
    `sparsify`, or from what a first `load` has returned by `Sparsifier(checkpoint.layers, method, seed=seed)`; the
    other after the layers are sparse. If anything is wrong, nothing has changed.
    """
    tensors, description = read_file(Path(path))
    with _naming(path):
        followers = _listed(sparsifier), _listed(optimizer)
        return _load(TensorTable(tensors), _checked(description), model, *followers, device)


def _load(
    table: TensorTable,
    description: State,
    model: nn.Module,
    sparsifiers: list[Sparsifier],
    optimizers: list[Optimizer],
    device: str | torch.device | None,
) -> Checkpoint:
    """Find out all that could be wrong, at first without memory, then with what the file holds, and only then load."""
    structure = _structure(description)
    if device is None:
        _check_model("load", model)
    else:
        _check_can_be_given_all(model, [*sparsifiers, *optimizers])
    _check_belong("load", model, sparsifiers, optimizers)
    _check_nodes(table, description)
    # What nobody asks for stays in the file.
    wanted = {
        **description,
        "optimizers": description["optimizers"][: len(optimizers)],
        "sparsifiers": description["sparsifiers"][: len(sparsifiers)],
    }
    outline = table.outline()
    outlines = _taken(outline, wanted)
    structure.check(model)
    built = skeleton(model)
    structure.build(built, outlines["model"])
    structure.make_room(built, outlines["model"])
    _check_tensors(outlines["model"], dict(built.state_dict(keep_vars=True)))
    _check_optimizers(outlines, description["optimizers"], optimizers, _first_names(model.state_dict(keep_vars=True)))
    _check_sparsifiers(outlines["sparsifiers"], description["sparsifiers"], sparsifiers)
    _check_size(table, outline, model)

    taken = _taken(table, wanted)
    state = taken["model"]
    structure.check_masks(state)
    structure.check_indices(built, state)
    with ExitStack() as undo:
        # What code of others may refuse comes first, and is taken back; the rest has been tried.
        _load_extra_states(undo, model, state)
        for sparsifier in sparsifiers:
            undo.callback(sparsifier.load_state_dict, sparsifier.state_dict())
        for optimizer, one, saved in zip(optimizers, taken["optimizers"], wanted["optimizers"], strict=True):
            _load_optimizer(undo, optimizer, one, _shapes_held(optimizer, saved["parameters"], state))
        for sparsifier, one in zip(sparsifiers, taken["sparsifiers"], strict=True):
            sparsifier.load_state_dict(one)
        undo.pop_all()
    structure.build(model, state)
    if device is None:
        model.load_state_dict(state)
    else:
        _give_all(model, state, torch.device(device))
    layers = sparse_layers(model)
    return Checkpoint({name: layers[name] for name in structure.layers if name in layers}, taken["extra"])


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
    with _naming(path):
        structure = _structure(_checked(description))
    return Description(
        version=description["version"],
        layers=structure.layers,
        attentions=structure.attentions,
        optimizers=[saved["type"] for saved in description["optimizers"]],
        steps_done=[saved["state"]["steps_done"] for saved in description["sparsifiers"]],
    )


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Name a file in whatever is found wrong with it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _checked(description: State) -> State:
    """Return a description that has its form; raise ValueError for any other."""
    version = description.get("version")
    if version not in READABLE:
        raise ValueError(
            f"it is a checkpoint of version {version!r}; this cutwork reads versions up to {VERSION}; use the one that "
            "wrote it, or a newer one"
        )
    check_form(description, FORM, "the description")
    return description


def _structure(description: State) -> Structure:
    return Structure.read(description["layers"], description["attentions"])


def _check_nodes(table: TensorTable, description: State) -> None:
    """Raise ValueError unless all that stands for values can be taken from a table."""
    for key, node in description["model"].items():
        table.check(node, key)
    for place, one in enumerate(description["optimizers"]):
        table.check(one["rest"], f"optimizers/{place}")
        for number, node in one["state"]:
            table.check(node, f"optimizers/{place}/{number}")
    for place, one in enumerate(description["sparsifiers"]):
        table.check(one["state"], f"sparsifiers/{place}")
    table.check(description["extra"], "extra")


def _taken(table: TensorTable, description: State) -> State:
    """Return the values of a checkpoint, with tensors from a table."""

    def entries(node: Any) -> State:
        value = table.take(node)
        if not isinstance(value, dict):
            raise ValueError(f"the description has {node!r} where names stand; it is damaged, load an earlier file")
        return value

    return {
        "model": {key: table.take(node) for key, node in description["model"].items()},
        "optimizers": [
            {**entries(one["rest"]), "state": {place: entries(node) for place, node in one["state"]}}
            for one in description["optimizers"]
        ],
        "sparsifiers": [table.take(one["state"]) for one in description["sparsifiers"]],
        "extra": entries(description["extra"]),
    }


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


def _check_optimizers(outlines: State, saved: list[State], optimizers: list[Optimizer], names: dict[int, str]) -> None:
    """Raise ValueError where optimizers are not those that were saved, or could not go on with what is saved."""
    wanted, given = [one["type"] for one in saved], [type(one).__name__ for one in optimizers]
    if optimizers and wanted != given:
        raise ValueError(
            f"load: the checkpoint holds {', '.join(wanted) or 'no optimizer'}; got {', '.join(given)}; give the same "
            "in the same order, or none"
        )
    for one, taken, optimizer in zip(saved, outlines["optimizers"], optimizers, strict=False):
        if (found := _names_held(optimizer, names)) != one["parameters"]:
            pairs = zip_longest(_flat(one["parameters"]), _flat(found), fillvalue="the end")
            old, new = next(pair for pair in pairs if pair[0] != pair[1])
            raise ValueError(
                f"load: the {one['type']} given trains other parameters than the one saved, first {new} where that had "
                f"{old}; build it over the same ones in the same groups, after their layers are sparse"
            )
        try:
            _check_places(one, taken)
        except ValueError as error:
            raise ValueError(f"load: the {one['type']} saved is damaged: {error}; load an earlier file") from error


def _check_places(one: State, taken: State) -> None:
    """Raise ValueError where groups do not say which parameter is which, or a state belongs to none."""
    groups: Any = taken.get("param_groups")
    check_form(groups, [Named(object)], "param_groups")
    for number, group in enumerate(groups):
        check_form(group.get("params"), [(COUNT, str)], f"param_groups/{number}/params")
        for key in group:
            if str(key).startswith(STATE_KEY):
                check_form(group[key], COUNT, f"param_groups/{number}/{key}")
    if more := sorted(str(key) for key in taken if str(key).startswith(STATE_KEY)):
        raise ValueError(f"it holds {more[0]}, which belongs to a sparsifier")
    if [len(group["params"]) for group in groups] != [len(names) for names in one["parameters"]]:
        raise ValueError("its groups have not as many places as parameters")
    places = list(chain.from_iterable(group["params"] for group in groups))
    if len(set(places)) < len(places) or len(taken["state"]) < len(one["state"]):
        raise ValueError("a place stands twice")
    if unknown := [place for place in taken["state"] if place not in places]:
        raise ValueError(f"it remembers something of parameter {unknown[0]}, which it does not have")


def _check_sparsifiers(outlines: list[State], saved: list[State], sparsifiers: list[Sparsifier]) -> None:
    if sparsifiers and len(sparsifiers) != len(saved):
        raise ValueError(
            f"load: the checkpoint holds {len(saved)} sparsifiers; got {len(sparsifiers)}; give as many, or none"
        )
    for one, taken, sparsifier in zip(saved, outlines, sparsifiers, strict=False):
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
        given = sparsifier.state_dict()
        if missing := set(given) - set(taken):
            raise ValueError(f"load: the sparsifier was saved without {', '.join(missing)}; make this with track=False")
        if "exploration" in given:
            _check_exploration(taken["exploration"], given["exploration"])


def _check_exploration(taken: Any, given: State) -> None:
    """Raise ValueError where what was explored is not of the layers that go on exploring."""
    sets = ("first", "ever", "always", "now")
    check_form(taken, {name: {**dict.fromkeys(sets, Tensor), "turnovers": [Number()]} for name in given}, "exploration")
    for name, seen in given.items():
        for key in sets:
            found, mask = taken[name][key], seen[key]
            if found.dtype != torch.bool or found.shape != mask.shape:
                raise ValueError(
                    f"load: the exploration of {name} is {found.dtype} {list(found.shape)}, where its mask is "
                    f"{list(mask.shape)}; the file is damaged, load an earlier one"
                )


def _check_size(table: TensorTable, outline: TensorTable, model: nn.Module) -> None:
    """Raise ValueError where a file asks for more memory than itself and the model account for."""
    stored = sum(tensor.nbytes for tensor in table.tensors.values())
    held = sum(tensor.nbytes for tensor in model.state_dict().values() if isinstance(tensor, Tensor))
    if outline.bytes_taken > UNFOLDS * stored + COPIES * held:
        raise ValueError(
            f"its {stored} bytes of tensors ask for {outline.bytes_taken} bytes, more than they and the model account "
            "for; it is damaged, load an earlier file"
        )


def _load_extra_states(undo: ExitStack, model: nn.Module, state: State) -> None:
    """Let modules with a state of their own kind take it; raise ValueError where one refuses."""
    for name, module in model.named_modules():
        key = under(name, "_extra_state")
        if key not in state:
            continue
        undo.callback(module.set_extra_state, module.get_extra_state())
        try:
            module.set_extra_state(state[key])
        except Exception as error:
            raise ValueError(
                f"{name or 'the model itself'} refuses its extra state: {error!r}; load another"
            ) from error


def _load_optimizer(undo: ExitStack, optimizer: Optimizer, state: State, shapes: list[list[Shape]]) -> None:
    """Load the state of an optimizer of parameters of these shapes; raise ValueError where it could not go on."""
    before = {key: vars(optimizer)[key] for key in ("state", "param_groups")}
    undo.callback(vars(optimizer).update, before)
    name, todo = type(optimizer).__name__, "load an earlier file"
    knows = [_remembered(optimizer, group, 2) is not None for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except Exception as error:
        raise ValueError(f"load: {name} refuses the state that was saved: {error!r}; {todo}") from error
    for place, (group, sizes) in enumerate(zip(optimizer.param_groups, shapes, strict=True)):
        for parameter, shape in zip(group["params"], sizes, strict=True) if knows[place] else ():
            needed = _remembered(optimizer, group, len(shape))
            if needed is None:
                raise ValueError(f"load: {name} can take no step with the settings that were saved; {todo}")
            held = optimizer.state.get(parameter) or {}
            for key, of_small in needed.items() if held else ():
                expected = [size if small > 1 else 1 for size, small in zip(shape, of_small, strict=False)]
                found = held.get(key)
                is_tensor = isinstance(found, Tensor)
                # Steps below zero have no roots, and no run has done them.
                if (
                    not is_tensor
                    or list(found.shape) != (expected if of_small else [])
                    or (key == "step" and found < 0)
                ):
                    raise ValueError(
                        f"load: {name} remembers {key} {list(found.shape) if is_tensor and found.ndim else found} of a "
                        f"parameter {list(shape)}, where it needs {expected if of_small else 'a number'}; {todo}"
                    )


def _remembered(optimizer: Optimizer, group: State, ndim: int) -> dict[str, Shape] | None:
    """Return the shapes of what one of torch's optimizers remembers of a small parameter; None where nobody knows.

    It takes steps on one: so no list says what optimizers remember, and settings that forbid a step are found.
    """
    if not f"{type(optimizer).__module__}.".startswith("torch.optim.") or not group["params"]:
        return None
    like = group["params"][0]
    small = nn.Parameter(torch.zeros(tuple(range(2, 2 + ndim)), dtype=like.dtype, device=like.device))
    small.grad = torch.ones_like(small)
    try:
        # Such a copy leaves the hooks behind.
        twin = copy.copy(optimizer)
        twin.state, twin.param_groups = defaultdict(dict), [{**group, "params": [small]}]
        # What the first remembers the second reads.
        twin.step()
        twin.step()
    except Exception:
        return None
    remembered = {key: value.shape for key, value in twin.state[small].items() if isinstance(value, Tensor)}
    return {key: shape for key, shape in remembered.items() if len(shape) in (0, ndim)}


def _method_of(sparsifier: Sparsifier) -> str:
    return type(sparsifier.method).__name__


def _check_model(what: str, model: nn.Module) -> None:
    for key, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and is_sharded(value):
            raise ValueError(
                f"{what}: {key} is sharded over processes; use torch.distributed.checkpoint, which takes the model's "
                "state dict as it is, or gather it first with get_model_state_dict and full_state_dict=True"
            )
        if isinstance(value, UninitializedBuffer | UninitializedParameter):
            raise ValueError(f"{what}: {key} has no shape yet; run one batch through the model first")
        if isinstance(value, Tensor) and value.is_meta:
            todo = "name the device where it shall be: load(path, model, device='cpu')"
            raise ValueError(
                f"{what}: {key} is on the meta device and has no memory; "
                f"{todo if what == 'load' else 'give it some, and numbers, first'}"
            )


def _check_can_be_given_all(model: nn.Module, followers: Sequence[Any]) -> None:
    """Raise ValueError where to give a model all tensors of a file would leave something behind."""
    if followers:
        raise ValueError(
            "load: with a device the model gets new parameters, which the optimizers and sparsifiers given do not "
            "know; load without them, build them, then load again without the device"
        )
    held = model.state_dict(keep_vars=True)
    for name, buffer in model.named_buffers():
        if buffer.is_meta and name not in held:
            raise ValueError(
                f"load: {name} is on the meta device and in no file; build its module outside of torch.device('meta'), "
                "or give it memory and numbers first"
            )
    for key, value in held.items():
        if isinstance(value, UninitializedBuffer | UninitializedParameter):
            raise ValueError(f"load: {key} has no shape yet; run one batch through the model first")


def _give_all(model: nn.Module, state: State, device: torch.device) -> None:
    """Put the tensors of a file, on a device, in the place of those of a model; what is shared stays so."""
    given: dict[int, Any] = {}
    for key, held in model.state_dict(keep_vars=True).items():
        value = state[key]
        if isinstance(value, Tensor) and id(value) not in given:
            moved = value.to(device)
            is_parameter = isinstance(held, nn.Parameter)
            given[id(value)] = nn.Parameter(moved, requires_grad=held.requires_grad) if is_parameter else moved
    model.load_state_dict({key: given.get(id(value), value) for key, value in state.items()}, assign=True)
    for layer in sparse_layers(model).values():
        layer.sparsity.restart(device)


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


def _check_tensors(saved: State, found: State) -> None:
    saved, found = _outlines(saved), _outlines(found)
    differing = [key for key in {**saved, **found} if saved.get(key) != found.get(key)]
    if differing:
        key = differing[0]
        raise ValueError(
            f"it was saved from another model: {len(differing)} of {len(saved)} tensors differ, first {key}: "
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


def _shapes_held(optimizer: Optimizer, names: list[list[str | None]], state: State) -> list[list[Shape]]:
    """Return the shapes that the parameters of an optimizer will have: the number of units of some may change."""
    return [
        [
            state[name].shape if name in state else parameter.shape
            for name, parameter in zip(row, group["params"], strict=True)
        ]
        for row, group in zip(names, optimizer.param_groups, strict=True)
    ]


def _flat(groups: list[list[str | None]]) -> list[str]:
    """Return the names with a word where each group begins."""
    return [
        str(name or "a parameter of another model") for group in groups for name in ("the begin of a group", *group)
    ]


def _listed(one_or_several: Any) -> list[Any]:
    if one_or_several is None:
        return []
    return list(one_or_several) if isinstance(one_or_several, Sequence) else [one_or_several]
