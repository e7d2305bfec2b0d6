"""Text for people: tables, shapes, and which name somebody may have meant."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def in_columns(lines: Sequence[Sequence[str]], flush: str, *, gap: str = "  ", widths: Sequence[int] = ()) -> list[str]:
    """Write cells under each other, each column flush left (<) or right (>); `widths` are the first columns' own.

    >>> in_columns([("a", "b"), ("long", "10")], "<>", gap=" ")
    ['a     b', 'long 10']
    """
    natural = [max(map(len, column)) for column in zip(*lines, strict=True)]
    chosen = [*widths, *natural[len(widths) :]]
    return [
        gap.join(f"{cell:{side}{width}}" for cell, side, width in zip(line, flush, chosen, strict=True)).rstrip()
        for line in lines
    ]


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """Return a question to put behind an unknown name; empty where no known one is near.

    >>> did_you_mean("rigle", ["static", "rigl"]), did_you_mean("fast", ["static", "rigl"])
    (" (did you mean 'rigl'?)", '')
    """
    names = {name.lower(): name for name in known}
    near = get_close_matches(given.lower(), names, n=1, cutoff=0.7) if isinstance(given, str) else []
    return f" (did you mean {names[near[0]]!r}?)" if near else ""


def shape_of(text: str) -> tuple[int, int]:
    """Read inputs x outputs.

    >>> shape_of("768x3072"), shape_of("768->3072")
    ((768, 3072), (768, 3072))
    """
    sizes = text.replace("->", "x").split("x")
    if len(sizes) != 2 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ValueError(f"unknown shape {text!r}; write inputs x outputs, for example 768x3072")
    return int(sizes[0]), int(sizes[1])


def arrow(inputs: int, outputs: int) -> str:
    """Write a shape so that nobody takes one side for the other; with an x it would be a weight's, or a kernel's.

    >>> arrow(768, 3072)
    '768->3072'
    """
    return f"{inputs}->{outputs}"


def label(name: str) -> str:
    """Return what to call the layer of this name; a model that is one layer has no name.

    >>> label("encoder.0"), label("")
    ('encoder.0', 'the model itself')
    """
    return name or "the model itself"


def counted(number: int, what: str) -> str:
    """Write a number of things.

    >>> counted(1, "core"), counted(2, "core")
    ('1 core', '2 cores')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def shorten(name: str, width: int) -> str:
    """Cut the middle out of a name that is too wide, but keep the numbers in it: they tell layers apart.

    >>> shorten("encoder.layers.11.attention.output", 20)
    'encoder..11...output'
    """
    if len(name) <= width:
        return name
    for length in range(len(name) - width, len(name)):
        start = (len(name) - length) // 2
        gap = "..".join(["", *re.findall(r"\d+", name[start : start + length]), ""]) or ".."
        short = name[:start] + gap + name[start + length :]
        if len(short) <= width:
            break
    return short[-width:]
