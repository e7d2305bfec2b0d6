"""Timings kept from one run to the next, in the user's cache folder."""

import json
import logging
import os
from pathlib import Path
from typing import Any, final

logger = logging.getLogger(__name__)

# No call of a layer takes that long.
MOST_SECONDS = 1e6


def cache_file() -> Path | None:
    """Return where timings are kept: `cutwork/timings.jsonl` in `$XDG_CACHE_HOME`, or else in `~/.cache`, if any."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cutwork" / "timings.jsonl"
    except RuntimeError:
        # In a container a user may have no home.
        return None


@final
class TimingCache:
    """Seconds by key, in a file that may be deleted at any time; what cannot be read or believed is measured anew.

    Each line is one entry, the last of a key counts, and lines are only added, each at once: threads and processes
    that write at the same time lose nothing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     TimingCache(Path(folder) / "timings.jsonl").put("linear 64x64", {"dense": 1e-5})
    ...     TimingCache(Path(folder) / "timings.jsonl").get("linear 64x64")
    {'dense': 1e-05}
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._entries = {} if file is None else _read(file)

    def get(self, key: str) -> dict[str, float]:
        """Return what is known under a key."""
        return dict(self._entries.get(key, {}))

    def put(self, key: str, seconds: dict[str, float]) -> None:
        """Add to what is known under a key, and save it."""
        self._entries[key] = {**self.get(key), **seconds}
        if self._file is None:
            return
        # It begins with the end of the last, which a crash or a full disk may have cut short.
        line = f"\n{json.dumps({key: self._entries[key]})}".encode()
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            _check_plain(self._file)
            with self._file.open("ab", buffering=0) as file:
                file.write(line)
        except OSError as error:
            logger.warning("timings cannot be kept in %s (%s); they are measured anew each time", self._file, error)
            self._file = None


def _check_plain(file: Path) -> None:
    """Raise OSError where something else stands in the place of the file: who opens a pipe may wait for ever."""
    if file.exists() and not file.is_file():
        raise OSError("it is no plain file")


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        _check_plain(file)
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        logger.warning("%s holds no timings (%s); they are measured anew", file, error)
        return {}
    entries: dict[str, dict[str, float]] = {}
    damaged = 0
    for line in filter(None, lines):
        entry = _parse(line)
        damaged += entry is None
        entries |= entry or {}
    if damaged:
        logger.warning("%s has %d lines that hold no timings; these are measured anew", file, damaged)
    return entries


def _parse(line: bytes) -> dict[str, dict[str, float]] | None:
    """Return the entry in a line, or None where it is none that could have been measured."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and all(map(_is_measured, entry.values())) else None


def _is_measured(seconds: Any) -> bool:
    return isinstance(seconds, dict) and all(
        isinstance(taken, int | float) and not isinstance(taken, bool) and 0 < taken < MOST_SECONDS
        for taken in seconds.values()
    )
