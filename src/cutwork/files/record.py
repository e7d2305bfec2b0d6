"""How one layer of a model is sparse, as data that a file can hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, final

from torch import Tensor

from cutwork.files.schema import Form, Named, Number, check_form
from cutwork.patterns import Pattern, parse
from cutwork.sparsity.compressed import why_not_store
from cutwork.sparsity.fixed import Fixed
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.learned import Learned
from cutwork.sparsity.masked import Masked
from cutwork.sparsity.reprojected import Reprojected
from cutwork.sparsity.softened import Softened
from cutwork.text import label

DENSE, COMPRESSED, INT8 = "dense", "compressed", "int8"
STORAGES = (DENSE, COMPRESSED, INT8)

# The ways of holding a mask by their names in a file, and the options of each: attributes of the same names.
KINDS: dict[str, type[Masked]] = {
    "fixed": Fixed,
    "reprojected": Reprojected,
    "learned": Learned,
    "softened": Softened,
}
OPTIONS: dict[str, dict[str, Form]] = {
    "fixed": {"estimate?": bool},
    "reprojected": {"decay": Number(), "decoupled?": bool},
    "softened": {},
    "learned": {
        "score_range": (None, [Number(), Number()]),
        "dense_weight_gradient": bool,
        "bits": Number(0, 62, is_whole=True),
    },
}
# What older files do not say.
OLDER: dict[str, dict[str, Any]] = {"reprojected": {"decoupled": False}}
# What the JSON of a record must look like.
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
    # Whether the layer alone computes in bfloat16; older files do not say it.
    converts: bool = field(default=False, compare=False)

    def layout_of(self, weight: Tensor) -> Layout:
        """Return how the weight of the layer, or another that shares its record, lies."""
        return Layout.of(weight, transposed=self.transposed)

    def __str__(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.options.items())
        tied = f", tied to {', '.join(self.tied)}" if self.tied else ""
        storage = "" if self.storage == DENSE else f", {self.storage}{' in bfloat16' if self.converts else ''}"
        return f"{self.kind} {self.pattern} at density {self.density:.4g}{options}{storage}{tied}"


def read_records(layers: Mapping[str, Any]) -> dict[str, LayerRecord]:
    """Make records of JSON again; raise ValueError where they are none, or contradict themselves or each other."""
    check_form(layers, Named(RECORD), "layers")
    records = {name: _with_all_options(LayerRecord(**record)) for name, record in layers.items()}
    names: set[str] = set()
    for name, record in records.items():
        _check_record(name, record)
        sharers = [name, *record.tied]
        if len(names | set(sharers)) != len(names) + len(sharers):
            raise ValueError(f"{label(name)} is described twice")
        names.update(sharers)
    return records


def options_of(sparsity: Any, kind: str) -> dict[str, Any]:
    """Return the options of a mask as JSON."""
    given = {name: getattr(sparsity, name) for name in (option.removesuffix("?") for option in OPTIONS[kind])}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def write_pattern(name: str, pattern: Pattern) -> str:
    """Return the text form of the pattern of a layer; raise ValueError where it could not be read back."""
    try:
        is_read_back = parse(str(pattern)) == pattern
    except ValueError:
        is_read_back = False
    if not is_read_back:
        raise ValueError(
            f"{label(name)} has the pattern {pattern!r}, whose text form {str(pattern)!r} parse() does not read; give "
            "it a row in PATTERNS"
        )
    return str(pattern)


def describe_difference(name: str, saved: LayerRecord, found: LayerRecord) -> str:
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
    return f"{label(name)} has {sides[0]} in the checkpoint, but {sides[1]} in the model; {todo}"


def _with_all_options(record: LayerRecord) -> LayerRecord:
    missing = {name: value for name, value in OLDER.get(record.kind, {}).items() if name not in record.options}
    return replace(record, options=record.options | missing)


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
