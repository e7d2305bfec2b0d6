"""The compiled grouping of similar rows as a function of tensors, and its registration."""

import functools

import numpy as np
import torch
from torch import Tensor

from cutwork.kernels import cpu
from cutwork.ops.dispatch import register_kernel
from cutwork.ops.grouping import group_similar, scale_of


def group(isa: str, mask: Tensor, size: int) -> Tensor:
    """Compute `group_similar`."""
    rows, columns = mask.shape
    words = -(-columns // 64)
    bits = np.zeros((rows, words * 8), dtype=np.uint8)
    bits[:, : -(-columns // 8)] = np.packbits(mask.numpy(), axis=1)
    scale, order = scale_of(mask), torch.empty(rows, dtype=torch.int64)
    cpu.grouping_kernels(isa).group(
        bits.ctypes.data, scale.data_ptr(), rows, words, size, order.data_ptr(), cpu.num_threads()
    )
    return order


def register() -> None:
    """Let `group_similar` use the kernel of the best instruction set this CPU has."""
    register_kernel(group_similar, "cpu", functools.partial(group, cpu.instruction_sets()[0]))
