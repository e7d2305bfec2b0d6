"""Giving each sparse layer the form that is fastest here, and all of them their whole weights again."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import nn

from cutwork.evaluation import call_of
from cutwork.layers.compressed import Compressed
from cutwork.layers.storage import expand
from cutwork.layers.swap import SparseLayer, sparse_layers, why_not_find
from cutwork.speed.choosing import AS_ASKED, Wishes, choose_forms
from cutwork.speed.forms import DENSE, FORMS, TILES, form_of
from cutwork.speed.plan import Plan, check_free, group_by_weight
from cutwork.speed.trial import Trial
from cutwork.text import label

Model = TypeVar("Model", bound=nn.Module)


def pack(
    model: nn.Module,
    *inputs: Any,
    forms: Wishes | None = None,
    precisions: str | Sequence[str] = (),
    training: bool = False,
    seconds: float = 0.2,
    cache: bool = True,
) -> Plan:
    """Give each sparse layer, in place, the form that measures fastest here, and return the plan that says why.

    The arguments are those of `plan`. Given inputs, the whole model is tried before and after: a layer with whose new
    form it fails, or returns something else, has its old one again, and the row says why. Layers in the form "tiles"
    store only what their masks keep: the parameter that they train is then `values` instead of `weight`, so pack before
    building an optimizer. `unpack` undoes it.

    >>> from cutwork import sparsify
    >>> model = nn.Sequential(nn.Linear(64, 64))
    >>> sparsifier = sparsify(model, "block:16", density=0.25)
    >>> print(pack(model, forms="tiles"))
    layer  shape  pattern   density  form   gain  reason
    0      64x64  block:16     0.25  tiles        as asked
    >>> model[0].values.shape
    torch.Size([4, 16, 16])
    """
    plan = choose_forms(
        model, inputs, forms=forms, precisions=precisions, training=training, seconds=seconds, cache=cache
    )
    if not inputs:
        plan.apply(model)
        return plan
    groups = group_by_weight(sparse_layers(model))
    trial = Trial(model, call_of(model, inputs), groups, training=training)
    try:
        plan.apply(model)
        harms = trial.take_back()
        # Of all layers at once tiles are asked where they can be had.
        _check_harmless(plan, {} if forms == TILES else harms)
        dense = [name for first in harms for name in groups[first] if form_of(model.get_submodule(name)) == DENSE]
        FORMS[DENSE].give(model, dense, training=training)
    except BaseException:
        trial.undo()
        raise
    return _without(plan, harms, model)


def unpack(model: Model, layers: str | Iterable[str] | None = None) -> Model:
    """Store the whole weights of compressed layers again, in place, and return the model."""
    found = {name: layer for name, layer in sparse_layers(model).items() if isinstance(layer, Compressed)}
    chosen = found if layers is None else _match(found, layers)
    if not chosen:
        raise ValueError(why_not_find(model, kind="compressed", otherwise="pack() it first"))
    check_free(chosen)
    for sharers in group_by_weight(found).values():
        if len({name in chosen for name in sharers}) > 1:
            raise ValueError(f"{', '.join(sharers)} share one weight; name all of them")
    expand(chosen)
    return model


def _check_harmless(plan: Plan, harms: Mapping[str, str]) -> None:
    """Raise ValueError where the model breaks with a form that was asked of a layer by its name."""
    for row in plan.rows:
        if row.layer in harms and row.reason == AS_ASKED:
            raise ValueError(
                f"{label(row.layer)} cannot take the form {row.form!r}: {harms[row.layer]}; leave "
                "its form out of forms, or forbid this one"
            )


def _without(plan: Plan, harms: Mapping[str, str], model: nn.Module) -> Plan:
    """Return a plan in which layers that a model breaks with have the forms which they were given back."""
    forms = {name: form_of(model.get_submodule(name)) for name in harms}
    rows = [
        replace(row, form=forms[row.layer], reason=f"{row.form}: {harms[row.layer]}") if row.layer in harms else row
        for row in plan.rows
    ]
    return replace(plan, rows=tuple(rows))


def _match(found: Mapping[str, SparseLayer], globs: str | Iterable[str]) -> dict[str, SparseLayer]:
    chosen: dict[str, SparseLayer] = {}
    for glob in [globs] if isinstance(globs, str) else globs:
        matched = {name: layer for name, layer in found.items() if fnmatchcase(name, glob)}
        if not matched:
            raise ValueError(
                f"no compressed layer matches {glob!r}; the compressed ones are {', '.join(map(repr, found)) or 'none'}"
            )
        chosen |= matched
    return chosen
