"""Timings kept from one run to the next, in the user's cache folder."""

import json
import logging
import os
from pathlib import Path
from typing import final

logger = logging.getLogger(__name__)


def cache_file() -> Path:
    """Return where timings are kept: `cutwork/timings.json` in `$XDG_CACHE_HOME`, or else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cutwork" / "timings.json"


@final
class TimingCache:
    """Seconds by key, in a file that may be deleted at any time; one that cannot be read is begun anew.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     TimingCache(Path(folder) / "timings.json").put("linear 64x64", {"dense": 1e-5})
    ...     TimingCache(Path(folder) / "timings.json").get("linear 64x64")
    {'dense': 1e-05}
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._entries = _read(file)

    def get(self, key: str) -> dict[str, float]:
        """Return what is known under a key."""
        return dict(self._entries.get(key, {}))

    def put(self, key: str, seconds: dict[str, float]) -> None:
        """Add to what is known under a key, and save it."""
        self._entries[key] = {**self.get(key), **seconds}
        # Another process may have added something meanwhile.
        self._entries = {**_read(self._file), **self._entries}
        temporary = self._file.with_suffix(f".{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(self._entries, indent=0))
            temporary.replace(self._file)
        except OSError as error:
            logger.warning("timings cannot be kept in %s (%s); they are measured anew each time", self._file, error)


def _read(file: Path) -> dict[str, dict[str, float]]:
    try:
        entries = json.loads(file.read_text())
        return {
            key: {form: float(taken) for form, taken in seconds.items()}
            for key, seconds in entries.items()
            if isinstance(seconds, dict)
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        logger.warning("%s holds no timings (%s); they are measured anew", file, error)
        return {}
