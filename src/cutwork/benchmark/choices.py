"""What people choose on the command line, checked before anything is measured."""

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from cutwork.patterns import Pattern, parse
from cutwork.spelling import did_you_mean
from cutwork.topology import Topology

# More threads for each core only wait for each other, and far too many end the process.
MOST_THREADS_A_CORE = 16
# Tiles of more inputs or outputs than that fit no layer, and are not worth the memory of trying.
LARGEST_TILE = 4096
# PyTorch's seeds are 64 bits wide.
SEEDS = 2**63
GIB = 2**30


def tiles(text: str) -> Pattern:
    """Read a pattern that tile kernels can compute.

    >>> tiles("vector:16")
    Block(rows=16, columns=1)
    """
    pattern = parse(text)
    if max(getattr(pattern, "rows", 1), getattr(pattern, "columns", 1)) > LARGEST_TILE:
        raise ValueError(f"pattern {text!r}: its tiles are larger than any layer; give sides up to {LARGEST_TILE}")
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


def check_given(what: str, choices: Sequence[object], example: str) -> None:
    """Raise ValueError if a list of choices is empty: then there would be nothing to measure."""
    if not choices:
        raise ValueError(f"{what}: nothing is given; name at least one, for example {example}")


def check_densities(densities: Sequence[float]) -> None:
    """Raise ValueError unless all densities are above 0 and up to 1, and there is one."""
    check_given("density", densities, "0.1")
    for density in densities:
        if not 0 < density <= 1:
            raise ValueError(f"density {density:g}; give shares of the weights above 0 and up to 1, for example 0.1")


def check_counts(what: str, counts: Sequence[int]) -> None:
    """Raise ValueError unless all counts are at least 1, and there is one."""
    check_given(what, counts, "1")
    for count in counts:
        if count < 1:
            raise ValueError(f"{what} {count}; give at least 1")


def check_seconds(seconds: float) -> None:
    """Raise ValueError unless this is some time, and not forever."""
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds {seconds:g}; give more than 0, and a finite number")


def check_threads(threads: int) -> None:
    """Raise ValueError unless a machine like this one can start so many threads."""
    most = MOST_THREADS_A_CORE * (os.cpu_count() or 1)
    if not 1 <= threads <= most:
        raise ValueError(f"threads {threads}; give at least 1, and on this machine at most {most}")


def check_seed(seed: int) -> None:
    """Raise ValueError unless generators of random numbers take this seed.

    >>> check_seed(2**64)
    Traceback (most recent call last):
    ValueError: seed 18446744073709551616; give a whole number of less than 19 digits
    """
    if not -SEEDS < seed < SEEDS:
        raise ValueError(f"seed {seed}; give a whole number of less than 19 digits")


def check_memory(what: str, num_bytes: int) -> None:
    """Raise ValueError if so many bytes are more than this machine has free, before anything asks for them."""
    free = free_memory()
    if free is not None and num_bytes > free:
        raise ValueError(
            f"{what} would take at least {num_bytes / GIB:,.1f} GiB of memory, of which {free / GIB:,.1f} GiB are "
            "free; choose smaller sizes"
        )


def free_memory() -> int | None:
    """Return how many bytes of memory programs may still take; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    amounts = dict(line.split(":") for line in lines)
    return 1024 * int(amounts["MemAvailable"].split()[0]) if "MemAvailable" in amounts else None


def make_folder(folder: Path) -> None:
    """Make a folder for results before anything is measured or trained, so that a wrong one costs nothing."""
    advice = "name a folder, there or not yet there, in which you may write"
    try:
        # Libraries that write files take names as text.
        os.fsencode(folder).decode()
        folder.mkdir(parents=True, exist_ok=True)
        # What may be written is known for certain only by writing.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output {folder}: {error.strerror}; {advice}") from error
    except ValueError as error:
        raise ValueError(f"output {folder}: its name is no UTF-8 text; {advice}") from error


def chosen(what: str, given: Sequence[str], legal: Sequence[str]) -> tuple[str, ...]:
    """Return what was given, each once; raise ValueError at an unknown name and if nothing was.

    >>> chosen("form", ["tile", "tile"], ("dense", "tile"))
    ('tile',)
    """
    check_given(what, given, legal[0])
    for name in given:
        if name not in legal:
            raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, legal)}; write one of {', '.join(legal)}")
    return tuple(dict.fromkeys(given))
