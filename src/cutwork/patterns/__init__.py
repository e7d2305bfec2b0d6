"""Patterns: which masks are legal. `parse` reads the text form, `str` writes it."""

import re
from collections.abc import Callable

from cutwork.patterns.base import Pattern, Shape, Tiling, keep_largest
from cutwork.patterns.block import Block
from cutwork.patterns.nm import NM
from cutwork.patterns.shuffled import Shuffled
from cutwork.patterns.unstructured import Unstructured
from cutwork.text import did_you_mean

__all__ = ["FORMS", "NM", "Block", "Pattern", "Shape", "Shuffled", "Tiling", "Unstructured", "keep_largest", "parse"]

FORMS: dict[str, Callable[..., Pattern]] = {
    r"unstructured": Unstructured,
    r"block:(\d+)x(\d+)": lambda rows, columns: Block(int(rows), int(columns)),
    r"block:(\d+)": lambda side: Block(int(side), int(side)),
    r"vector:(\d+)": lambda rows: Block(int(rows), 1),
    r"shuffled:(\d+)x(\d+)": lambda rows, columns: Shuffled(int(rows), int(columns)),
    r"shuffled:(\d+)": lambda side: Shuffled(int(side), int(side)),
    r"(\d+):(\d+)": lambda n, m: NM(int(n), int(m)),
    r"(\d+):(\d+)-(tile|tile-greedy)": lambda n, m, form: NM(int(n), int(m), form),
}
NAMES = ("unstructured", "block", "vector", "shuffled")
# What patterns that take sizes look like.
EXAMPLES = {"block": "'block:32' or 'block:64x16'", "vector": "'vector:16'", "shuffled": "'shuffled:16'"}
LEGAL = "'unstructured', 'block:32', 'block:64x16', 'vector:16', 'shuffled:16', '2:4', '2:4-tile' or another n:m"


def parse(text: str | Pattern) -> Pattern:
    """Read a pattern from its text form; a pattern is returned as it is.

    >>> parse("block:64x16")
    Block(rows=64, columns=16)
    >>> str(parse("block:16x1"))
    'vector:16'
    """
    if isinstance(text, Pattern):
        return text
    if not isinstance(text, str):
        raise TypeError(f"a pattern is a text or a Pattern; got {text!r} ({type(text).__name__}); write {LEGAL}")
    for form, build in FORMS.items():
        if match := re.fullmatch(form, text):
            return build(*match.groups())
    if example := EXAMPLES.get(text.partition(":")[0]):
        raise ValueError(f"pattern {text!r} needs sizes in whole numbers after a colon; write {example}")
    raise ValueError(f"unknown pattern {text!r}{_nearest(text)}; write {LEGAL}")


def _nearest(text: str) -> str:
    """Return the legal pattern that somebody may have meant, as a question; the sizes are theirs."""
    name, sizes = re.fullmatch(r"([^\d:]*)[: ]*(.*)", text, re.DOTALL).groups()  # pyrefly: ignore
    found = [f"{word}:{sizes}" if sizes else word for word in NAMES]
    legal = [pattern for pattern in found if any(re.fullmatch(form, pattern) for form in FORMS)]
    return did_you_mean(f"{name.strip('-_ ')}:{sizes}" if sizes else name, legal)
