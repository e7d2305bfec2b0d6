"""Which forms the layers of a model should take here, or what would make it faster, by what people call the model."""

from collections.abc import Mapping, Sequence
from glob import escape
from typing import Any

from cutwork.lab.building import choose_layers
from cutwork.lab.subject import find_subject
from cutwork.layers.swap import sparse_layers
from cutwork.speed.forms import DENSE
from cutwork.speed.plan import Plan
from cutwork.speed.planning import plan
from cutwork.speed.proposal import DENSITIES, PATTERNS, Proposal


def plan_subject(
    what: str,
    options: Mapping[str, Any],
    *,
    speedup: float | None = None,
    training: bool = False,
    precisions: Sequence[str] = (),
    seconds: float = 0.2,
    **place: Any,
) -> Plan | Proposal:
    """Return the plan for a model, or with a speedup the proposal for a dense one.

    The options are those of a run, by name, None where none was given; what `place` says goes to `find_subject`.
    """
    if speedup is None:
        subject = find_subject(what, options=options, **place)
        if not sparse_layers(subject.model):
            raise ValueError(f"{what} has no sparse layer; name a pattern, or propose one by a speedup")
        return plan(subject.model, subject.inputs, precisions=precisions, training=training, seconds=seconds)
    if training or precisions:
        raise ValueError("a speedup is predicted for inference at the model's own precision; leave the others out")
    subject = find_subject(what, options={**options, "pattern": DENSE, "density": None}, **place)
    if sparse_layers(subject.model):
        raise ValueError(f"{what} is sparse already; a speedup is for a dense model")
    names = choose_layers(subject.model, subject.training.sparse)
    return plan(
        *(subject.model, subject.inputs),
        speedup=speedup,
        patterns=options["pattern"] or PATTERNS,
        densities=options["density"] or DENSITIES,
        layers=[escape(name) for name in names],
        seconds=seconds,
    )
