"""A cache of its own for each test, and seconds that a test sets instead of measuring them."""

import pytest

from cutwork.speed import layer_timing
from cutwork.speed.timing import Timing


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def speed(monkeypatch):
    """Let every form of every layer take the seconds set here, whatever it really takes."""
    seconds = {"dense": 2e-3, "tiles": 1e-3, "tiles-bf16": 5e-4, "tiles-int8": 3e-4, "calls": 0, "spread": 0.0}

    def measure(calls, **options):
        seconds["calls"] += 1
        for call in calls.values():
            call()
        return {form: Timing(seconds[form], seconds["spread"], 5) for form in calls}

    monkeypatch.setattr(layer_timing, "measure", measure)
    return seconds
