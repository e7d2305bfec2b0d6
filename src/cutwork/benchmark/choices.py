"""What people choose on the command line, checked before anything is measured."""

from collections.abc import Iterable, Sequence

import torch

from cutwork.patterns import Pattern, parse
from cutwork.topology import Topology


def tiles(text: str) -> Pattern:
    """Read a pattern that tile kernels can compute.

    >>> tiles("vector:16")
    Block(rows=16, columns=1)
    """
    pattern = parse(text)
    # It says itself what it cannot index.
    Topology.from_mask(torch.ones(1, 1, dtype=torch.bool), pattern)
    return pattern


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


def check_densities(densities: Iterable[float]) -> None:
    """Raise ValueError unless all densities are above 0 and up to 1."""
    for density in densities:
        if not 0 < density <= 1:
            raise ValueError(f"density {density:g}; give shares of the weights above 0 and up to 1, for example 0.1")


def check_counts(what: str, counts: Iterable[int]) -> None:
    """Raise ValueError unless all counts are at least 1."""
    for count in counts:
        if count < 1:
            raise ValueError(f"{what} {count}; give at least 1")


def chosen(what: str, given: Sequence[str], legal: Sequence[str]) -> tuple[str, ...]:
    """Return what was given, or everything legal if nothing was; raise ValueError at an unknown name.

    >>> chosen("form", (), ("dense", "tile"))
    ('dense', 'tile')
    """
    for name in given:
        if name not in legal:
            raise ValueError(f"unknown {what} {name!r}; write one of {', '.join(legal)}")
    return tuple(given) or tuple(legal)
