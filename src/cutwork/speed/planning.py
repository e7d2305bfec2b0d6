"""Asking how fast a model can be: by the forms of its sparse layers, or by making layers sparse."""

from collections.abc import Sequence
from typing import Any, overload

from torch import nn

from cutwork.patterns import Pattern
from cutwork.speed.choosing import Wishes, check_question, choose_forms
from cutwork.speed.plan import Plan
from cutwork.speed.proposal import DENSITIES, PATTERNS, Proposal, propose


@overload
def plan(
    model: nn.Module,
    *inputs: Any,
    speedup: None = None,
    forms: Wishes | None = None,
    precisions: str | Sequence[str] = (),
    training: bool = False,
    seconds: float = 0.2,
    cache: bool = True,
) -> Plan: ...


@overload
def plan(
    model: nn.Module,
    *inputs: Any,
    speedup: float,
    patterns: str | Pattern | Sequence[str | Pattern] = PATTERNS,
    densities: float | Sequence[float] = DENSITIES,
    layers: str | Sequence[str] = "*",
    seconds: float = 0.2,
) -> Proposal: ...


def plan(
    model: nn.Module,
    *inputs: Any,
    speedup: float | None = None,
    patterns: str | Pattern | Sequence[str | Pattern] = PATTERNS,
    densities: float | Sequence[float] = DENSITIES,
    layers: str | Sequence[str] = "*",
    forms: Wishes | None = None,
    precisions: str | Sequence[str] = (),
    training: bool = False,
    seconds: float = 0.2,
    cache: bool = True,
) -> Plan | Proposal:
    """Measure the forms that each sparse layer can take here, and return which it should take and why.

    The `inputs` are those of the model, a mapping at the end holding what it takes by name: they tell what each layer
    sees. Without any, linear layers are measured with a few usual numbers of tokens, and leave dense only where that is
    faster for all of them. `forms` forces a form, or forbids one with an exclamation mark ("!tiles"), everywhere or by
    globs over layer names, of which the last that matches decides. `precisions` adds forms of linear layers in fewer
    bits, "bf16" and, for inference, "int8", whose results differ by their rounding. With `training` the backward pass
    counts too. Each distinct layer is measured for `seconds` with each input. What is steady is kept in a file in the
    user's cache folder unless `cache` is False; `cutwork doctor` says where, and it may be deleted. What is not steady
    is marked with "~".

    With a `speedup`, the model is one to be made sparse: return the `Proposal` of `patterns` and `densities` by which
    the whole model would get so much faster, with most weights left. `layers` chooses among the layers that could be
    sparse: a glob over their names or several, of which the last that matches decides, with an exclamation mark before
    those to leave out (["*", "!head"]). What cannot be sparse stays dense, and the proposal says why. Each pattern at
    each density is timed inside the model for five times `seconds`, and nothing of that is kept.
    """
    check_question(model, seconds)
    if speedup is None:
        if layers != "*":
            raise ValueError(
                "layers says which layers a speedup may make sparse; to choose forms of sparse ones by name, use forms"
            )
        return choose_forms(
            model, inputs, forms=forms, precisions=precisions, training=training, seconds=seconds, cache=cache
        )
    if forms is not None:
        raise ValueError(
            "forms are for a model that is sparse, and a speedup for one that is not yet; give one of the two"
        )
    if training or precisions:
        raise ValueError(
            "a speedup is predicted for inference at the model's own precision; leave training and "
            "precisions out, and measure the step of a sparse model with 'cutwork benchmark train'"
        )
    return propose(
        model, inputs, speedup=speedup, patterns=patterns, densities=densities, seconds=seconds, layers=layers
    )
