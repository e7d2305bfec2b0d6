"""Which of the known names somebody may have meant."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """Return a question to put behind an unknown name; empty where no known one is near.

    >>> did_you_mean("rigle", ["static", "rigl"]), did_you_mean("fast", ["static", "rigl"])
    (" (did you mean 'rigl'?)", '')
    """
    names = {name.lower(): name for name in known}
    near = get_close_matches(given.lower(), names, n=1, cutoff=0.7) if isinstance(given, str) else []
    return f" (did you mean {names[near[0]]!r}?)" if near else ""
