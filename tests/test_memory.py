"""What is asked of the memory before anything large is made."""

import pytest
import torch

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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_memory_is_taken_in_the_shape_and_dtype_that_are_asked_for(dtype):
    taken = memory.take_memory((3, 5), dtype, torch.device("cpu"))
    assert taken.shape == (3, 5) and taken.dtype == dtype and taken.is_contiguous()
    taken.fill_(2)
    assert taken.sum() == 30
