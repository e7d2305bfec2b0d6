"""What `check` found in the zeros of a model, as a table with sentences below it and as JSON."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from textwrap import wrap
from typing import final

from cutwork.costs.zeros import EMPTY, Zeros
from cutwork.text import counted, in_columns, label, shorten
from cutwork.training.selection import describe_reasons

# What tells zeros where no masks lie beside the weights.
ITSELF = "zeros"
WIDTH = 120
HEAD = ("weight", "shape", "density", "zeros", "also", "here")
FLUSH = "<<><<<"


@final
@dataclass(frozen=True)
class CheckedWeight:
    """One weight: the order in its zeros, the form that is best for it here, and why.

    `form` is "tiles", "dense", or empty where only measuring would tell, or the input decides. `gains` has what was
    measured: how many times faster than dense its layer is as tiles, by the shape of its input.
    """

    name: str
    zeros: Zeros
    form: str
    reason: str
    gains: dict[str, float] = field(default_factory=dict)
    is_steady: bool = True


@final
@dataclass(frozen=True)
class Check:
    """What was found in a model: of each weight that has zeros what they are good for, and which have none.

    `obstacles` says of layers whose weight cannot be looked at why.
    """

    source: str
    told_by: str
    weights: tuple[CheckedWeight, ...]
    without_zeros: tuple[str, ...]
    obstacles: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Write it as a table, and below in sentences what there is to say of each kind of zeros."""
        return "\n".join(_lines(self))

    def to_json(self) -> str:
        """Write it as JSON, with exact numbers."""
        return json.dumps(asdict(self), indent=2)


def _lines(found: Check) -> Iterator[str]:
    total = len(found.weights) + len(found.without_zeros)
    yield f"{found.source}: {counted(total, 'weight')}, zeros told by {_name_of(found.told_by)}"
    if not found.weights:
        yield "No weight has zeros: nothing here is pruned."
        yield from _tell_obstacles(found)
        return
    yield ""
    cells = [HEAD, *map(_cells, found.weights)]
    widest = max(12, WIDTH - sum(max(map(len, column)) + 2 for column in list(zip(*cells, strict=True))[1:]))
    yield from in_columns([(shorten(first, widest), *rest) for first, *rest in cells], FLUSH)
    yield ""
    groups: dict[tuple[str, str], list[CheckedWeight]] = {}
    for each in found.weights:
        groups.setdefault((str(each.zeros), each.reason), []).append(each)
    for (order, reason), members in groups.items():
        kept = [each.zeros.density for each in members]
        share = f"{min(kept):.3g}" if max(kept) - min(kept) < 0.005 else f"{min(kept):.3g} to {max(kept):.3g}"
        busy = "" if all(each.is_steady for each in members) else "; runs lie far apart, the machine is busy"
        text = f"{order} in {len(members)} of {counted(total, 'weight')}, density {share}: {reason}{busy}"
        yield from wrap(text, WIDTH, subsequent_indent="  ")
    yield from _remarks(found)


def _remarks(found: Check) -> Iterator[str]:
    for each in found.weights:
        if each.zeros.nearly:
            yield from wrap(f"{label(each.name)} is {each.zeros.nearly}, so not 2:4", WIDTH, subsequent_indent="  ")
    for what, numbers in (
        ("output", [each.zeros.empty_outputs for each in found.weights]),
        ("input", [each.zeros.empty_inputs for each in found.weights]),
    ):
        if any(numbers):
            number = counted(sum(numbers), what)
            yield f"{number} zero as a whole, in {counted(sum(map(bool, numbers)), 'weight')}"
    if found.without_zeros:
        names = ", ".join(map(label, found.without_zeros[:3])) + (", ..." if len(found.without_zeros) > 3 else "")
        line = f"{counted(len(found.without_zeros), 'weight')} without zeros: {names}"
        yield from wrap(line, WIDTH, subsequent_indent="  ")
    yield from _tell_obstacles(found)


def _tell_obstacles(found: Check) -> Iterator[str]:
    for line in describe_reasons(found.obstacles):
        yield from wrap(f"not looked at: {line}", WIDTH, subsequent_indent="  ")


def _cells(each: CheckedWeight) -> tuple[str, ...]:
    zeros = each.zeros
    return (
        label(each.name),
        "x".join(map(str, zeros.shape)),
        f"{zeros.density:.4g}",
        str(zeros),
        ", ".join(zeros.also),
        _say_form(each),
    )


def _say_form(each: CheckedWeight) -> str:
    if each.gains:
        about = "" if each.is_steady else "~"
        return "tiles " + ", ".join(f"{about}{gain:.2f}x" for gain in each.gains.values())
    return each.form or ("" if each.zeros.pattern == EMPTY else "tiles?")


def _name_of(told_by: str) -> str:
    return "the weights themselves" if told_by == ITSELF else f"the masks of {told_by}"
