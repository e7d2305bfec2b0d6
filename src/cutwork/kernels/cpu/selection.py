"""The compiled choices of what is kept, as functions of tensors, and their registration.

They decide by float32; the references decide by float64, and in groups of very many.
"""

import functools

import torch
from torch import Tensor

from cutwork.kernels import cpu
from cutwork.kernels.cpu.arguments import choose
from cutwork.ops import selection as ops
from cutwork.ops.dispatch import reference_of, register_kernel

# Each is compared with every other of its group; of more, sorting is faster.
MANY_NEIGHBOURS = 256


def keep_largest(isa: str, scores: Tensor, count: int) -> Tensor:
    """Compute `keep_largest`."""
    if not 0 < count < scores.numel():
        return reference_of(ops.keep_largest)(scores, count)
    scores, mask = scores.contiguous(), torch.empty(scores.shape, dtype=torch.bool)
    kernels = cpu.selection_kernels(isa)
    kernels.largest(scores.data_ptr(), mask.data_ptr(), scores.numel(), count, cpu.num_threads())
    return mask


def keep_best_runs(isa: str, scores: Tensor, allowed: Tensor, columns: int, count: int) -> Tensor:
    """Compute `keep_best_runs`."""
    scores, allowed, mask = scores.contiguous(), allowed.contiguous(), torch.zeros_like(scores, dtype=torch.bool)
    if count > 0 and scores.numel():
        addresses = (tensor.data_ptr() for tensor in (scores, allowed, mask))
        cpu.selection_kernels(isa).runs(*addresses, *scores.shape, columns, count, cpu.num_threads())
    return mask


def keep_in_groups(isa: str, scores: Tensor, n: int, m: int) -> Tensor:
    """Compute `keep_in_groups`."""
    if m > MANY_NEIGHBOURS:
        return reference_of(ops.keep_in_groups)(scores, n, m)
    scores, mask = scores.contiguous(), torch.empty(scores.shape, dtype=torch.bool)
    kernels = cpu.selection_kernels(isa)
    kernels.groups(scores.data_ptr(), mask.data_ptr(), scores.numel() // m, n, m, cpu.num_threads())
    return mask


def keep_best_tiles(isa: str, scores: Tensor, n: int) -> Tensor:
    """Compute `keep_best_tiles`."""
    scores, mask = scores.contiguous(), torch.empty(scores.shape, dtype=torch.bool)
    kernels = cpu.selection_kernels(isa)
    kernels.best_tiles(scores.data_ptr(), mask.data_ptr(), *scores.shape, n, cpu.num_threads())
    return mask


def keep_tiles_greedily(isa: str, scores: Tensor, n: int) -> Tensor:
    """Compute `keep_tiles_greedily`."""
    scores, mask = scores.contiguous(), torch.empty(scores.shape, dtype=torch.bool)
    kernels = cpu.selection_kernels(isa)
    kernels.greedy_tiles(scores.data_ptr(), mask.data_ptr(), *scores.shape, n, cpu.num_threads())
    return mask


def register() -> None:
    """Let decisions use the compiled kernels for float32 tensors on the CPU."""
    isa = cpu.instruction_sets()[0]
    for decision, kernel in (
        (ops.keep_largest, keep_largest),
        (ops.keep_best_runs, keep_best_runs),
        (ops.keep_in_groups, keep_in_groups),
        (ops.keep_best_tiles, keep_best_tiles),
        (ops.keep_tiles_greedily, keep_tiles_greedily),
    ):
        by_dtype = {torch.float32: functools.partial(kernel, isa)}
        register_kernel(decision, "cpu", choose(reference_of(decision), by_dtype))
