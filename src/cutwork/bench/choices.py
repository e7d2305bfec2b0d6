"""What people choose on the command line, checked before anything is measured."""

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cutwork.patterns import Pattern, parse
from cutwork.patterns.density import check_density
from cutwork.sparsity.compressed import why_not_store
from cutwork.text import did_you_mean

# More threads for each core only wait for each other, and far too many end the process.
MOST_THREADS_A_CORE = 16
# Tiles of more inputs or outputs than that fit no layer, and are not worth the memory of trying.
LARGEST_TILE = 4096
# PyTorch's seeds are 64 bits wide.
SEEDS = 2**63


def tiles(text: str) -> Pattern:
    """Read a pattern that tile kernels can compute.

    >>> tiles("vector:16")
    Block(rows=16, columns=1)
    """
    pattern = parse(text)
    if pattern.tiling is None:
        raise ValueError(why_not_store(pattern))
    if max(pattern.tiling.rows, pattern.tiling.columns) > LARGEST_TILE:
        raise ValueError(f"the tiles of {text!r} are larger than any layer; give sides up to {LARGEST_TILE}")
    return pattern


def check_given(what: str, choices: Sequence[object], example: str) -> None:
    """Raise ValueError if a list of choices is empty: then there would be nothing to measure."""
    if not choices:
        raise ValueError(f"nothing is given for {what}; name at least one, for example {example}")


def check_densities(densities: Sequence[float]) -> None:
    """Raise ValueError unless all densities are above 0 and up to 1, and there is one."""
    check_given("density", densities, "0.1")
    for density in densities:
        check_density(density)


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


def choose(what: str, given: Sequence[str], legal: Sequence[str]) -> tuple[str, ...]:
    """Return what was given, each once; raise ValueError at an unknown name and if nothing was.

    >>> choose("form", ["tile", "tile"], ("dense", "tile"))
    ('tile',)
    """
    check_given(what, given, legal[0])
    for name in given:
        if name not in legal:
            raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, legal)}; write one of {', '.join(legal)}")
    return tuple(dict.fromkeys(given))
