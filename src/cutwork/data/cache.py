"""Where data sets lie that were downloaded, or that one keeps for all programs."""

import os
from pathlib import Path

VARIABLE = "CUTWORK_DATA"


def cache_folder() -> Path:
    """Return the folder in the environment variable `CUTWORK_DATA`, or `~/.cache/cutwork/data`."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "cutwork" / "data"
