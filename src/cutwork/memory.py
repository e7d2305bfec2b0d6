"""How much memory is free, asked before anything large is made."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GIB = 2**30


def check_memory(what: str, num_bytes: int) -> None:
    """Raise ValueError if so many bytes are more than this machine has free, before anything asks for them."""
    free = free_memory()
    if free is not None and num_bytes > free:
        raise ValueError(
            f"{what} would take at least {num_bytes / GIB:,.1f} GiB of memory, of which {free / GIB:,.1f} GiB are "
            "free; choose smaller sizes"
        )


def take_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor with any numbers in it, for a large matrix that is soon given back."""
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    # NumPy asks the system for large pages and PyTorch does not: to fill 64 MiB takes 8 ms instead of 30.
    return torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def free_memory() -> int | None:
    """Return how many bytes of memory programs may still take; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    amounts = dict(line.split(":") for line in lines)
    return 1024 * int(amounts["MemAvailable"].split()[0]) if "MemAvailable" in amounts else None
