"""Text in columns."""

from collections.abc import Sequence


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
