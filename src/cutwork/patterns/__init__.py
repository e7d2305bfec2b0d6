"""Patterns: which masks are legal. `parse` reads the text form, `str` writes it."""

import re
from collections.abc import Callable

from cutwork.ops.selection import keep_largest
from cutwork.patterns.base import FreePattern, Pattern, Shape, Tiling
from cutwork.patterns.block import Block
from cutwork.patterns.nm import NM
from cutwork.patterns.shuffled import Shuffled
from cutwork.patterns.tap_block import TapBlock
from cutwork.patterns.unstructured import Unstructured
from cutwork.text import did_you_mean

__all__ = [
    "NM",
    "PATTERNS",
    "Block",
    "FreePattern",
    "Pattern",
    "Shape",
    "Shuffled",
    "TapBlock",
    "Tiling",
    "Unstructured",
    "keep_largest",
    "parse",
]

# How patterns are written, by an example. One of your own is one class and one row.
PATTERNS: dict[str, tuple[str, Callable[..., Pattern]]] = {
    "unstructured": (r"unstructured", Unstructured),
    "block:32": (r"block:(\d+)", lambda side: Block(int(side), int(side))),
    "block:64x16": (r"block:(\d+)x(\d+)", lambda rows, columns: Block(int(rows), int(columns))),
    "block:16-taps": (
        r"block:(\d+)(?:x(\d+))?-(\d+)?taps",
        lambda rows, columns, taps: TapBlock(int(rows), int(columns or rows), taps and int(taps)),
    ),
    "vector:16": (r"vector:(\d+)", lambda rows: Block(int(rows), 1)),
    "shuffled:16": (r"shuffled:(\d+)", lambda side: Shuffled(int(side), int(side))),
    "shuffled:16x1": (r"shuffled:(\d+)x(\d+)", lambda rows, columns: Shuffled(int(rows), int(columns))),
    "2:4": (r"(\d+):(\d+)", lambda n, m: NM(int(n), int(m))),
    "2:4-tile": (r"(\d+):(\d+)-(tile|tile-greedy)", lambda n, m, form: NM(int(n), int(m), form)),
}


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
        raise TypeError(f"a pattern is a text or a Pattern; got {text!r} ({type(text).__name__}); write {_legal()}")
    for form, build in PATTERNS.values():
        if match := re.fullmatch(form, text):
            return build(*match.groups())
    word = text.partition(":")[0]
    if examples := [example for example in PATTERNS if word and _name(example) == word]:
        raise ValueError(
            f"pattern {text!r} needs sizes in whole numbers after a colon; write {' or '.join(map(repr, examples))}"
        )
    raise ValueError(f"unknown pattern {text!r}{_nearest(text)}; write {_legal()}")


def _name(text: str) -> str:
    """Return the word before the sizes; empty where a pattern has none, such as 2:4."""
    return re.match(r"[^\d:]*", text)[0]  # pyrefly: ignore


def _legal() -> str:
    return ", ".join(map(repr, PATTERNS)) + " or the like with other numbers"


def _nearest(text: str) -> str:
    """Return the legal pattern that somebody may have meant, as a question; the sizes are theirs."""
    name, sizes = re.fullmatch(r"([^\d:]*)[: ]*(.*)", text, re.DOTALL).groups()  # pyrefly: ignore
    known = dict.fromkeys(filter(None, map(_name, PATTERNS)))
    found = [f"{word}:{sizes}" if sizes else word for word in known]
    legal = [pattern for pattern in found if any(re.fullmatch(form, pattern) for form, _ in PATTERNS.values())]
    return did_you_mean(f"{name.strip('-_ ')}:{sizes}" if sizes else name, legal)
