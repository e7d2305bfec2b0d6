"""What makes the layers of a model sparse, as data: read off one model, and built into another."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from cutwork.files.schema import Named, Number, check_form
from cutwork.layers.attention import OpenAttention, disable_fused_paths, open_attention
from cutwork.layers.compressed import Compressed, checked_topology
from cutwork.layers.int8 import Int8Linear, exchange
from cutwork.layers.sparse import Sparse
from cutwork.layers.storage import become_compressed
from cutwork.layers.swap import (
    Candidate,
    SparseLayer,
    can_swap,
    candidates,
    is_conv1d_class,
    make_sparse,
    sparse_layers,
)
from cutwork.ops.int8_linear import STEP
from cutwork.ops.topology import Topology
from cutwork.patterns import Pattern, Shape, Tiling, parse
from cutwork.sparsity.base import Sparsity
from cutwork.sparsity.compressed import FixedIndex, why_not_store
from cutwork.sparsity.fixed import Fixed
from cutwork.sparsity.learned import Learned
from cutwork.sparsity.matrix import matrix_shape, to_matrix
from cutwork.sparsity.reprojected import Reprojected

KINDS = {"fixed": Fixed, "reprojected": Reprojected, "learned": Learned}

DENSE, COMPRESSED, INT8 = "dense", "compressed", "int8"
STORAGES = (DENSE, COMPRESSED, INT8)
# How large a tile may be of which none is kept, so that no number of the file speaks for its size.
LARGEST_ABSENT = 2**20

# What the JSON of a record must look like, and the options of each kind.
RECORD = {
    "kind": str,
    "pattern": str,
    "density": Number(0, 1),
    "transposed": bool,
    "tied": [str],
    "options": Named(object),
    "mask_density": Number(0, 1),
    "mask_is_legal": bool,
    "frozen": [str],
    "storage?": str,
    "converts?": bool,
}
OPTIONS = {
    "fixed": {"estimate?": bool},
    "reprojected": {"decay": Number()},
    "learned": {
        "score_range": (None, [Number(), Number()]),
        "dense_weight_gradient": bool,
        "bits": Number(0, 62, is_whole=True),
    },
}

State = dict[str, Any]


@final
@dataclass(frozen=True)
class LayerRecord:
    """How one layer, and those that share its weight, are sparse; two that compare equal train alike.

    On the way to its density a mask may be denser than its pattern allows.
    """

    kind: str
    pattern: str
    density: float
    transposed: bool
    tied: list[str]
    options: dict[str, Any]
    mask_density: float = field(compare=False)
    mask_is_legal: bool = field(compare=False)
    frozen: list[str] = field(compare=False)
    storage: str = DENSE
    # Whether the layer alone computes in bfloat16; a file of earlier days does not say it.
    converts: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        tied = f", tied to {', '.join(self.tied)}" if self.tied else ""
        storage = "" if self.storage == DENSE else f", {self.storage}{' in bfloat16' if self.converts else ''}"
        return f"{self.kind} {self.pattern} at density {self.density:.4g}{options}{storage}{tied}"


@final
@dataclass(frozen=True)
class Structure:
    """The sparse layers of a model, by the first name of each, and its attentions that are open."""

    layers: dict[str, LayerRecord]
    attentions: list[str]

    @classmethod
    def of(cls, model: nn.Module) -> "Structure":
        """Describe a model."""
        layers = sparse_layers(model)
        sharers: dict[int, list[str]] = {}
        for name, layer in layers.items():
            sharers.setdefault(id(layer.sparsity), []).append(name)
        tied = {names[0]: names[1:] for names in sharers.values()}
        records = {}
        for name, module in model.named_modules():
            if name in tied:
                records[name] = _record(name, layers[name], tied[name])
            elif isinstance(module, Int8Linear):
                records[name] = _int8_record(name, module)
        return cls(records, [name for name, module in _all_modules(model) if isinstance(module, OpenAttention)])

    @classmethod
    def read(cls, layers: dict[str, Any], attentions: list[str]) -> "Structure":
        """Make a structure of JSON again; raise ValueError where it is none."""
        check_form(layers, Named(RECORD), "layers")
        check_form(attentions, [str], "attentions")
        records = {name: LayerRecord(**record) for name, record in layers.items()}
        names: set[str] = set()
        for name, record in records.items():
            _check_record(name, record)
            sharers = [name, *record.tied]
            if len(names | set(sharers)) != len(names) + len(sharers):
                raise ValueError(f"{name or 'the model itself'} is described twice")
            names.update(sharers)
        return cls(records, attentions)

    def check(self, model: nn.Module) -> None:
        """Raise ValueError unless the layers of a model are dense, or sparse in just this way."""
        present, found = Structure.of(model).layers, candidates(model)
        if more := sorted(set(present) - set(self.layers)):
            raise ValueError(
                f"{more[0]} is {present[more[0]]} in the model, but not sparse in the checkpoint; load into a dense "
                "model, or bake() this one"
            )
        modules = dict(_all_modules(model))
        for name in self.attentions:
            if type(modules.get(name)) not in (nn.MultiheadAttention, OpenAttention):
                raise ValueError(
                    f"{name or 'the model itself'} is an attention in the checkpoint, but none in the model; build the "
                    "model that was saved"
                )
        for name, record in self.layers.items():
            if name in present:
                if present[name] != record:
                    raise ValueError(_difference(name, record, present[name]))
                continue
            for each in (name, *record.tied):
                _check_candidate(each, record, found.get(each), self.attentions)

    def check_masks(self, state: State) -> None:
        """Raise ValueError unless every mask in a state dict is legal, where it was so in the model described."""
        for name, record in self.layers.items():
            if record.storage != DENSE:
                continue
            matrix, pattern = (
                to_matrix(state[under(name, "sparsity.mask")], transposed=record.transposed),
                parse(record.pattern),
            )
            pattern.check(matrix.shape)
            if record.mask_is_legal and not pattern.allows(matrix):
                raise ValueError(
                    f"{name}: the mask in the checkpoint is not legal for {record.pattern}; save it with a pattern "
                    "that allows it"
                )

    def check_indices(self, skeleton: nn.Module, state: State) -> None:
        """Raise ValueError unless each compressed weight in a state dict is sound and fits its layer in a skeleton."""
        for name, record in self.layers.items():
            if record.storage == DENSE:
                continue
            layer = cast(Compressed | Int8Linear, skeleton.get_submodule(name))
            index = layer if isinstance(layer, Int8Linear) else layer.sparsity
            numbers = state[under(name, "integers" if isinstance(layer, Int8Linear) else "values")]
            outputs, inputs = index.topology.shape
            if not numbers.numel() and index.rows * index.columns > max(LARGEST_ABSENT, outputs * inputs):
                raise ValueError(
                    f"{name or 'the model itself'} keeps no unit, and those of {record.pattern} are larger than it is; "
                    "save it with smaller ones"
                )
            if isinstance(layer, Int8Linear):
                layer.check_named(name, {key: state[under(name, key)] for key in layer.state_dict()})
                continue
            ptr, col = (state[under(name, key)] for key in ("sparsity.ptr", "sparsity.col"))
            shape, pattern, order = (
                layer.sparsity.shape,
                layer.sparsity.pattern,
                state.get(under(name, "sparsity.order")),
            )
            checked_topology(name, shape, pattern, values=numbers, ptr=ptr, col=col, order=order)

    def build(self, model: nn.Module, state: State) -> None:
        """Make those layers sparse that are dense, with masks and parameters of their own from a state dict.

        Done to a `skeleton` it finds out whether it can be done, and what becomes of the model: then compressed layers
        that are there already get the sizes they will have. Raises ValueError where it cannot; the skeleton is then of
        no more use, and the model should not have been tried.
        """
        for name, module in list(model.named_modules()):
            if name in self.attentions and type(module) is nn.MultiheadAttention:
                open_attention(module)
        present = {name for name, module in model.named_modules() if isinstance(module, Sparse)}
        built: dict[str, Sparsity] = {}
        for name, record in self.layers.items():
            if record.storage == INT8:
                _build_int8(record, name, model, state)
                continue
            if name in present:
                continue
            weight = _shared_weight(record, name, model)
            if record.storage == COMPRESSED:
                _build_compressed(record, name, model, state)
            else:
                sparsity = _build(record, name, weight, state)
                built |= dict.fromkeys((name, *record.tied), sparsity)
        make_sparse(model, built)

    def make_room(self, skeleton: nn.Module, state: State) -> None:
        """Give compressed layers of a skeleton as many units as a state dict has, as the model does in loading."""
        for name, record in self.layers.items():
            values, col = (state.get(under(name, key)) for key in ("values", "sparsity.col"))
            if record.storage != COMPRESSED or not isinstance(values, Tensor) or not isinstance(col, Tensor):
                continue
            layers = [cast(Compressed, skeleton.get_submodule(each)) for each in (name, *record.tied)]
            held = layers[0].values
            if values.ndim == held.ndim and values.shape[1:] == held.shape[1:] and col.shape == values.shape[:1]:
                trained = nn.Parameter(held.new_empty(values.shape), requires_grad=held.requires_grad)
                for layer in layers:
                    layer.values = trained
                index = layers[0].sparsity
                index.col = index.col.new_empty(col.shape)


def under(name: str, key: str) -> str:
    """Return the key in a state dict of something inside the module of this name."""
    return f"{name}.{key}" if name else key


def _difference(name: str, saved: LayerRecord, found: LayerRecord) -> str:
    """Say in what a layer differs from the saved one, and what to do."""
    records = [{**vars(record), **record.options} for record in (saved, found)]
    skipped = {"options", *(each.name for each in fields(LayerRecord) if not each.compare)}
    keys = [key for key in records[0] | records[1] if key not in skipped]
    differing = [key for key in keys if records[0].get(key) != records[1].get(key)]
    sides = [" and ".join(f"{key} {record.get(key, 'none')}" for key in differing) for record in records]
    todo = "load into a dense model"
    if differing == ["storage"]:
        todo = f"""{'pack(model, forms="tiles")' if saved.storage == COMPRESSED else "unpack()"} it first, or {todo}"""
    elif INT8 not in (saved.storage, found.storage):
        todo = f"sparsify() it alike, or {todo}"
    return f"{name or 'the model itself'} has {sides[0]} in the checkpoint, but {sides[1]} in the model; {todo}"


def _record(name: str, layer: SparseLayer, tied: list[str]) -> LayerRecord:
    sparsity = layer.sparsity
    is_compressed = isinstance(sparsity, FixedIndex)
    trained = "values" if is_compressed else "weight"
    parameters = {trained: layer.trained, **dict(sparsity.named_parameters())}
    return LayerRecord(
        kind="fixed" if is_compressed else next(kind for kind, form in KINDS.items() if isinstance(sparsity, form)),
        pattern=_text_of(name, sparsity.pattern),
        density=sparsity.density,
        transposed=sparsity.transposed,
        tied=tied,
        options=_options(sparsity),
        mask_density=float(sparsity.mask.double().mean()),
        mask_is_legal=sparsity.pattern.allows(sparsity.mask_matrix()),
        frozen=[key for key, parameter in parameters.items() if not parameter.requires_grad],
        storage=COMPRESSED if is_compressed else DENSE,
        converts=bool(vars(layer).get("converts")),
    )


def _int8_record(name: str, layer: Int8Linear) -> LayerRecord:
    outputs, inputs = layer.topology.shape
    return LayerRecord(
        kind="fixed",
        pattern=_text_of(name, layer.pattern),
        density=layer.density,
        transposed=layer.transposed,
        tied=[],
        options={},
        mask_density=layer.topology.num_kept() / (outputs * inputs),
        mask_is_legal=True,
        frozen=[],
        storage=INT8,
    )


def _options(sparsity: Sparsity) -> dict[str, Any]:
    if isinstance(sparsity, Fixed | FixedIndex):
        return {"estimate": sparsity.estimate}
    if isinstance(sparsity, Reprojected):
        return {"decay": sparsity.decay}
    assert isinstance(sparsity, Learned), f"{type(sparsity)} is not one of KINDS"
    return {
        "score_range": None if sparsity.score_range is None else list(sparsity.score_range),
        "dense_weight_gradient": sparsity.dense_weight_gradient,
        "bits": sparsity.bits,
    }


def _text_of(name: str, pattern: Pattern) -> str:
    try:
        is_read_back = parse(str(pattern)) == pattern
    except ValueError:
        is_read_back = False
    if not is_read_back:
        raise ValueError(
            f"{name} has the pattern {pattern!r}, whose text form {str(pattern)!r} parse() does not read; give it a "
            "row in FORMS"
        )
    return str(pattern)


def _check_record(name: str, record: LayerRecord) -> None:
    """Raise ValueError where a record contradicts itself, or this version does not know it."""
    place = f"layers/{name}"
    if record.kind not in KINDS:
        raise ValueError(f"{place} is of the kind {record.kind!r}, but there are {', '.join(KINDS)}")
    check_form(record.options, OPTIONS[record.kind], f"{place}/options")
    if record.storage not in STORAGES:
        raise ValueError(f"{place} has the storage {record.storage!r}, but there are {', '.join(STORAGES)}")
    pattern = parse(record.pattern)
    if record.storage != DENSE and (reason := why_not_store(pattern)):
        raise ValueError(f"{place} is {record.storage}: {reason}")
    if ("estimate" in record.options) != (record.kind == "fixed" and record.storage != INT8):
        raise ValueError(f"{place}/options has an estimate where only masks that train have one, or lacks it")
    if record.storage == INT8 and (record.tied or not name):
        raise ValueError(f"{place} is in int8, which only a layer of its own inside a model can be")
    if record.converts and record.storage != COMPRESSED:
        raise ValueError(f"{place} is {record.storage}, but converts, which only compressed layers do")
    if record.storage != DENSE and record.kind != "fixed":
        raise ValueError(f"{place} is {record.storage}, which only fixed masks are; it is {record.kind}")


def _check_candidate(name: str, record: LayerRecord, found: Candidate | None, attentions: list[str]) -> None:
    """Raise ValueError where a dense layer of a model cannot become what a record says."""
    can_be = (
        found is not None
        and can_swap(found.kind)
        and is_conv1d_class(found.kind) == record.transposed
        and found.attention in (None, *attentions)
        and not (issubclass(found.kind, nn.Conv2d) and (record.storage == INT8 or record.converts))
    )
    if found is None or not can_be:
        raise ValueError(
            f"{name or 'the model itself'} is {record} in the checkpoint, but no layer of this model that can be; "
            "build the model that was saved, without what wraps it (as in wrapped.module)"
        )
    if found.obstacle:
        raise ValueError(f"{name or 'the model itself'} is {record} in the checkpoint, but cannot be: {found.obstacle}")


def _shared_weight(record: LayerRecord, name: str, model: nn.Module) -> nn.Parameter:
    """Return the weight of a layer; raise ValueError where not all have it that should."""
    weights = [cast(nn.Parameter, model.get_submodule(each).weight) for each in (name, *record.tied)]
    if any(weight is not weights[0] for weight in weights):
        raise ValueError(
            f"{name} shares its weight with {', '.join(record.tied)} in the checkpoint, but not in the model; build "
            "the model that was saved"
        )
    return weights[0]


def _own_tensors(record: LayerRecord, name: str, shape: Shape, state: State) -> dict[str, Tensor]:
    """Return what a state dict has for the sparsity of a layer; raise ValueError where that is not what it needs."""
    prefix, needed = under(name, "sparsity."), _needed(record, shape)
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if differing := sorted(set(own) ^ set(needed)):
        raise ValueError(
            f"{prefix}{differing[0]} is {'unknown' if differing[0] in own else 'missing'} in the checkpoint, where "
            f"{name or 'the model itself'} is {record}; save the model again"
        )
    for key, (dtype, sizes) in needed.items():
        _check_outline(f"{prefix}{key}", own[key], dtype, sizes)
    return own


def _check_outline(name: str, value: Any, dtype: torch.dtype | None, sizes: Sequence[int | None]) -> None:
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


def _needed(record: LayerRecord, shape: Shape) -> dict[str, tuple[torch.dtype | None, Sequence[int | None]]]:
    """Return what the sparsity of a layer whose weight has this shape needs in a state dict.

    That is, of each tensor, its dtype, or None for floating point, and its shape, in which None is any size.
    """
    matrix = matrix_shape(shape, transposed=record.transposed)
    needed: dict[str, tuple[torch.dtype | None, Sequence[int | None]]] = {}
    if record.storage == COMPRESSED:
        needed |= {"ptr": (torch.int32, [None]), "col": (torch.int32, [None])}
        if _tiling_of(record).order is not None:
            needed["order"] = torch.int32, [None]
    else:
        needed["mask"] = torch.bool, shape
    if record.options.get("estimate"):
        needed |= {"energy_in": (None, [shape[0 if record.transposed else 1]]), "energy_out": (None, [matrix[0]])}
    if record.kind == "learned":
        needed["scores"] = None, parse(record.pattern).grid(matrix)
    if record.options.get("bits"):
        needed |= {"shift": (None, [1]), "scale": (None, [1])}
    return needed


def _build(record: LayerRecord, name: str, weight: nn.Parameter, state: State) -> Sparsity:
    own = {key: value.to(weight.device) for key, value in _own_tensors(record, name, weight.shape, state).items()}
    options = dict(record.options)
    bits = options.pop("bits", 0)
    if record.kind == "learned":
        options["scores"] = own["scores"]
        options["score_range"] = options["score_range"] and tuple(options["score_range"])
        weight.requires_grad_("weight" not in record.frozen)
    sparsity = KINDS[record.kind](
        to_matrix(own["mask"], transposed=record.transposed),
        weight.shape,
        pattern=parse(record.pattern),
        density=record.density,
        transposed=record.transposed,
        **options,
    )
    if isinstance(sparsity, Learned) and bits:
        sparsity.bin_weight(weight, bits, transform=(0.0, 1.0), fixed_transform=True)
    for key, _ in list(sparsity.named_parameters()):
        # The model may have been cast after it was made sparse: the dtype is that of the state dict.
        setattr(sparsity, key, nn.Parameter(own[key], requires_grad=key not in record.frozen))
    return sparsity


def _build_compressed(record: LayerRecord, name: str, model: nn.Module, state: State) -> None:
    """Make a dense layer, and those that share its weight, compressed; the values themselves are loaded later."""
    weight = cast(nn.Parameter, model.get_submodule(name).weight)
    own = {key: value.to(weight.device) for key, value in _own_tensors(record, name, weight.shape, state).items()}
    tiling, values = _tiling_of(record), cast(Tensor, state.get(under(name, "values")))
    dtype = torch.bfloat16 if record.converts else weight.dtype
    if isinstance(values, Tensor) and values.dtype == torch.bfloat16 != dtype:
        raise ValueError(
            f"{name or 'the model itself'} holds {values.dtype} in the checkpoint, but {dtype} in the model; build the "
            "model in the same dtypes; where an earlier version packed this layer alone so, sparsify() the model as "
            f"before, and call pack(model, forms={{{name!r}: 'tiles-bf16'}}) before loading"
        )
    _check_outline(under(name, "values"), values, dtype, [None, tiling.columns, tiling.rows])
    energies = None
    if record.options["estimate"]:
        energy_in, energy_out = (
            nn.Parameter(own[key], requires_grad=key not in record.frozen) for key in ("energy_in", "energy_out")
        )
        energies = energy_in, energy_out
    shape = matrix_shape(weight.shape, transposed=record.transposed)
    index = FixedIndex(
        Topology(shape, tiling.rows, tiling.columns, own["ptr"], own["col"], own.get("order")),
        weight.shape,
        pattern=parse(record.pattern),
        density=record.density,
        transposed=record.transposed,
        energies=energies,
    )
    trained = nn.Parameter(weight.new_zeros(values.shape), requires_grad=weight.requires_grad)
    for each in (name, *record.tied):
        layer = cast(Any, model.get_submodule(each))
        become_compressed(layer, index, trained)
        if record.converts:
            layer.bfloat16().converts = True
    disable_fused_paths(model)


def _build_int8(record: LayerRecord, name: str, model: nn.Module, state: State) -> None:
    """Put a layer in int8 in the place of a dense one, or fill one that is there, from a state dict."""
    layer = cast(Any, model.get_submodule(name))
    is_there = isinstance(layer, Int8Linear)
    shape = layer.topology.shape if is_there else matrix_shape(layer.weight.shape, transposed=record.transposed)
    device = (layer.scales if is_there else layer.weight).device
    tiling, outputs = _tiling_of(record), shape[0]
    needed: dict[str, tuple[torch.dtype | None, Sequence[int | None]]] = {
        "integers": (torch.int8, [None, tiling.rows, STEP]),
        "scales": (None, [outputs]),
        "ptr": (torch.int32, [None]),
        "col": (torch.int32, [None]),
    }
    if tiling.order is not None:
        needed["order"] = torch.int32, [outputs]
    if layer.bias is not None:
        needed["bias"] = layer.bias.dtype, [outputs]
    own: dict[str, Tensor] = {}
    for key, (dtype, sizes) in needed.items():
        value = state.get(under(name, key))
        _check_outline(under(name, key), value, dtype, sizes)
        own[key] = cast(Tensor, value).to(device)
    if is_there:
        # Another number of steps needs room, which loading does not make.
        for key, tensor in own.items():
            layer.register_buffer(key, tensor)
        return
    built = Int8Linear(
        Topology(shape, tiling.rows, tiling.columns, own["ptr"], own["col"], own.get("order")),
        integers=own["integers"],
        scales=own["scales"],
        bias=own.get("bias"),
        pattern=parse(record.pattern),
        density=record.density,
        transposed=record.transposed,
    )
    exchange(model, layer, built.train(layer.training))
    disable_fused_paths(model)


def _tiling_of(record: LayerRecord) -> Tiling:
    tiling = parse(record.pattern).tiling
    assert tiling is not None, f"{record.pattern} has no compressed storage"
    return tiling


def _all_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))
