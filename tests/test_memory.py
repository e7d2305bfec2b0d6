"""What is asked of the memory before anything large is made."""

import pytest

from cutwork import memory


def test_memory_that_is_not_there_is_refused_and_told(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 2**30)
    with pytest.raises(
        ValueError, match=r"^a layer would take at least 2\.0 GiB of memory, of which 1\.0 GiB are free"
    ):
        memory.check_memory("a layer", 2**31)
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    memory.check_memory("a layer", 2**80)


def test_what_there_is_memory_for_is_let_through():
    memory.check_memory("a number", 4)
