"""Options of runs as text: read from a command line, and written into the names of what differs in them."""

import re
from collections.abc import Sequence
from dataclasses import asdict, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cutwork.lab.training import PARTS, Sparse, Training, all_options
from cutwork.text import did_you_mean

DENSE = "dense"
# A run that is dense all over is decided by these alone.
OF_DENSE = {*all_options()} - {each.name for each in fields(Sparse)} | {"pattern"}
TRUTHS = {"true": True, "false": False}


def options_of(training: Training) -> dict[str, Any]:
    """Return all options of a run by their own names.

    >>> options_of(Training())["lr"]
    0.1
    """
    given: dict[str, Any] = asdict(training)
    parts = [given.pop(part) for part in PARTS]
    return given | {name: value for part in parts for name, value in part.items()}


def is_dense(training: Training) -> bool:
    """Say whether nothing is sparse in a run."""
    return training.sparse.pattern == DENSE and training.sparse.member is None


def names_in(training: Training, options: Sequence[str]) -> list[str]:
    """Return those of the options that make a difference in a run."""
    return [option for option in options if option in OF_DENSE or not is_dense(training)]


def name_of(training: Training, options: Sequence[str]) -> str:
    """Return what to call a run that differs from others in these options.

    >>> name_of(Training().having(pattern="block:16", density=0.1), ["pattern", "density"])
    'pattern=block:16,density=0.1'
    """
    given = options_of(training)
    return ",".join(f"{option}={write_value(given[option])}" for option in names_in(training, options))


def read_value(name: str, text: str) -> Any:
    """Read one value of an option; the parts of one that has several are divided by spaces.

    >>> read_value("density", "0.5"), read_value("every", "none"), read_value("milestones", "30 60")
    (0.5, None, (30.0, 60.0))
    """
    if name not in all_options():
        raise ValueError(f"there is no option {name!r}{did_you_mean(name, all_options())}")
    kind = next(hints[name] for hints in map(get_type_hints, (Training, *PARTS.values())) if name in hints)
    if NoneType in get_args(kind):
        if text == "none":
            return None
        kind = next(each for each in get_args(kind) if each is not NoneType)
    try:
        return _read(kind, text)
    except (KeyError, ValueError) as error:
        choices = get_args(kind) if get_origin(kind) is Literal else [*TRUTHS] if kind is bool else ()
        told = f"; write {', '.join(choices)}" if choices else ""
        raise ValueError(f"{name}={text} is no value of this option{did_you_mean(text, choices)}{told}") from error


def write_value(value: Any) -> str:
    """Write a value of an option as it can stand in the name of a folder.

    >>> write_value(0.05), write_value("folder:a/b"), write_value((30.0, 60.0)), write_value(None)
    ('0.05', 'folder:a-b', '30-60', 'none')
    """
    if isinstance(value, tuple | list):
        return "-".join(map(write_value, value)) or "none"
    told = "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[/\s]+", "-", told) or "none"


def _read(kind: Any, text: str) -> Any:
    if get_origin(kind) is tuple:
        return tuple(_read(get_args(kind)[0], each) for each in text.split())
    if get_origin(kind) is Literal:
        return {each: each for each in get_args(kind)}[text]
    return TRUTHS[text] if kind is bool else kind(text)
