"""What makes the layers of a model sparse, as data: read off one model, and built into another."""

from dataclasses import dataclass, field, fields
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from cutwork.layers.attention import OpenAttention, disable_fused_paths, open_attention, projections
from cutwork.layers.compress import become_compressed
from cutwork.layers.compressed import INDEX_KEYS, Compressed, checked_topology
from cutwork.layers.fixed_index import FixedIndex
from cutwork.layers.swap import (
    SparseLayer,
    can_swap,
    candidates,
    is_conv1d_class,
    make_sparse,
    sparse_layers,
)
from cutwork.matrix import matrix_shape, to_matrix
from cutwork.patterns import Pattern, parse
from cutwork.sparsity import Fixed, Learned, Reprojected, Sparsity

KINDS = {"fixed": Fixed, "reprojected": Reprojected, "learned": Learned}

DENSE, COMPRESSED = "dense", "compressed"
# What a compressed layer has instead of a weight, as its state dict names it.
COMPRESSED_KEYS = ("values", *INDEX_KEYS)

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

    def __str__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        tied = f", tied to {', '.join(self.tied)}" if self.tied else ""
        storage = "" if self.storage == DENSE else f", {self.storage}"
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
        records = {names[0]: _record(names[0], layers[names[0]], names[1:]) for names in sharers.values()}
        return cls(records, [name for name, module in _all_modules(model) if isinstance(module, OpenAttention)])

    def check(self, model: nn.Module) -> None:
        """Raise ValueError unless the layers of a model are dense, or sparse in just this way."""
        present, found = Structure.of(model).layers, candidates(model)
        if more := sorted(set(present) - set(self.layers)):
            raise ValueError(
                f"{more[0]} is {present[more[0]]} in the model, but not sparse in the checkpoint; load into a dense "
                "model, or bake() this one"
            )
        for name, record in self.layers.items():
            if name in present:
                if present[name] != record:
                    raise ValueError(_difference(name, record, present[name]))
                continue
            for each in (name, *record.tied):
                kind = found[each].kind if each in found else None
                if kind is None or not can_swap(kind) or is_conv1d_class(kind) != record.transposed:
                    raise ValueError(
                        f"{each or 'the model itself'} is {record} in the checkpoint, but no layer of this model that "
                        "can be; build the model that was saved, without what wraps it (as in wrapped.module)"
                    )

    def check_masks(self, state: State) -> None:
        """Raise ValueError unless every mask in a state dict is legal, where it was so in the model described."""
        for name, record in self.layers.items():
            if record.storage == COMPRESSED:
                continue
            matrix = to_matrix(state[under(name, "sparsity.mask")], transposed=record.transposed)
            if record.mask_is_legal and not parse(record.pattern).allows(matrix):
                raise ValueError(
                    f"{name}: the mask in the checkpoint is not legal for {record.pattern}; save it with a pattern "
                    "that allows it"
                )

    def check_indices(self, model: nn.Module, state: State) -> None:
        """Raise ValueError unless every compressed weight in a state dict is sound and fits its layer in a model."""
        found = self.state_of(model)
        for name, record in self.layers.items():
            if record.storage != COMPRESSED:
                continue
            values, ptr, col, order = (state.get(under(name, key)) for key in COMPRESSED_KEYS)
            if values is None or ptr is None or col is None:
                raise ValueError(f"{name}: the checkpoint holds no values and index of it; save the model again")
            weights = {id(found.get(under(each, "weight"))) for each in (name, *record.tied)}
            if len(weights) > 1:
                raise ValueError(
                    f"{name} shares its weight with {', '.join(record.tied)} in the checkpoint, but not in the model; "
                    "build the model that was saved"
                )
            shape, dtype = _outline(model, name, found, transposed=record.transposed)
            if values.dtype != dtype:
                raise ValueError(
                    f"{name} holds {values.dtype} in the checkpoint, but {dtype} in the model; build the model in the "
                    "same dtypes; where this layer alone was packed so, sparsify() the model as before, and call "
                    f"pack(model, forms={{{name!r}: 'tiles-bf16'}}) before loading"
                )
            checked_topology(name, shape, parse(record.pattern), values=values, ptr=ptr, col=col, order=order)

    def known_part(self, model: nn.Module, state: State) -> State:
        """Return the entries of a state dict that a model has before `build`, as it has them."""
        present = sparse_layers(model)
        prefixes = tuple(under(name, "sparsity.") for name in self.layers if name not in present)
        new = {id(value) for key, value in state.items() if key.startswith(prefixes)}
        return {key: value for key, value in self.comparable(state).items() if id(value) not in new}

    def comparable(self, state: State) -> State:
        """Return the entries of a state dict whose sizes must agree: not the weights of compressed layers."""
        names = [
            each
            for name, record in self.layers.items()
            if record.storage == COMPRESSED
            for each in (name, *record.tied)
        ]
        keys = {under(name, key) for name in names for key in ("weight", *COMPRESSED_KEYS)}
        # A layer that stands in several places has its weight under the names of all.
        weights = {id(value) for key, value in state.items() if key in keys}
        return {key: value for key, value in state.items() if id(value) not in weights}

    def state_of(self, model: nn.Module) -> State:
        """Return the state of a model under the keys that it will have when its attentions are open."""
        state = dict(model.state_dict(keep_vars=True))
        parts: dict[int, dict[str, tuple[Tensor, Tensor | None]]] = {}
        for name, module in _all_modules(model):
            if name not in self.attentions or type(module) is not nn.MultiheadAttention:
                continue
            for key in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
                state.pop(under(name, key), None)
            # One module may stand in several places; its parts must be the same tensors in each.
            for part, (weight, bias) in parts.setdefault(id(module), projections(module)).items():
                state[under(name, f"{part}.weight")] = weight
                if bias is not None:
                    state[under(name, f"{part}.bias")] = bias
        return state

    def build(self, model: nn.Module, state: State) -> None:
        """Make those layers sparse that are dense, with masks and parameters of their own from a state dict."""
        for name, module in list(model.named_modules()):
            if name in self.attentions and type(module) is nn.MultiheadAttention:
                open_attention(module)
        present = sparse_layers(model)
        built: dict[str, Sparsity] = {}
        for name, record in self.layers.items():
            if name in present:
                continue
            if record.storage == COMPRESSED:
                _build_compressed(record, name, model, state)
            else:
                sparsity = _build(record, name, model.get_submodule(name).weight, state)  # pyrefly: ignore
                built |= dict.fromkeys((name, *record.tied), sparsity)
        make_sparse(model, built)


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
    todo = "sparsify() it alike, or load into a dense model"
    if differing == ["storage"]:
        todo = 'pack(model, forms="tiles") it first' if saved.storage == COMPRESSED else "unpack() it first"
        todo += ", or load into a dense model"
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


def _build(record: LayerRecord, name: str, weight: nn.Parameter, state: State) -> Sparsity:
    own = {key: state[under(name, f"sparsity.{key}")].to(weight.device) for key in _keys_under(name, state)}
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
    own = {key: state[under(name, f"sparsity.{key}")].to(weight.device) for key in _keys_under(name, state)}
    shape = matrix_shape(weight.shape, transposed=record.transposed)
    pattern, values = parse(record.pattern), state[under(name, "values")]
    energies = None
    if record.options["estimate"]:
        energy_in, energy_out = (
            nn.Parameter(own[key], requires_grad=key not in record.frozen) for key in ("energy_in", "energy_out")
        )
        energies = energy_in, energy_out
    index = FixedIndex(
        checked_topology(name, shape, pattern, values=values, ptr=own["ptr"], col=own["col"], order=own.get("order")),
        weight.shape,
        pattern=pattern,
        density=record.density,
        transposed=record.transposed,
        energies=energies,
    )
    trained = nn.Parameter(weight.new_zeros(values.shape), requires_grad=weight.requires_grad)
    for each in (name, *record.tied):
        become_compressed(model.get_submodule(each), index, trained)
    disable_fused_paths(model)


def _outline(model: nn.Module, name: str, found: State, *, transposed: bool) -> tuple[tuple[int, int], torch.dtype]:
    """Return the shape, as a matrix, and the dtype of the weight that a layer has, or will have when it is open."""
    weight = found.get(under(name, "weight"))
    if weight is not None:
        return matrix_shape(weight.shape, transposed=transposed), weight.dtype
    layer = model.get_submodule(name)
    assert isinstance(layer, Compressed), f"{name} has neither a weight nor values"
    return layer.sparsity.shape, layer.values.dtype


def _keys_under(name: str, state: State) -> list[str]:
    prefix = under(name, "sparsity.")
    return [key.removeprefix(prefix) for key in state if key.startswith(prefix)]


def _all_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules(remove_duplicate=False))
