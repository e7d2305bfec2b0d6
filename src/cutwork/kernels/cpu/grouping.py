"""The compiled grouping of rows as functions of tensors, and their registration."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cutwork.kernels import cpu
from cutwork.kernels.cpu.arguments import choose, locate_weight
from cutwork.ops import grouping as ops
from cutwork.ops.dispatch import reference_of, register_kernel
from cutwork.ops.grouping import scale_of
from cutwork.ops.topology import Topology


def group(isa: str, bits: Tensor, size: int) -> Tensor:
    """Compute `group_similar`."""
    scale, order = scale_of(bits), torch.empty(len(bits), dtype=torch.int64)
    words = F.pad(bits, (0, -bits.shape[1] % 8)).contiguous().view(torch.int64)
    cpu.grouping_kernels(isa).group(
        words.data_ptr(), scale.data_ptr(), *words.shape, size, order.data_ptr(), cpu.num_threads()
    )
    return order


def mark(isa: str, chosen: Tensor, tiles: Topology) -> Tensor:
    """Compute `mark`."""
    chosen, bits = chosen.contiguous(), torch.zeros(tiles.shape[0], -(-tiles.shape[1] // 8), dtype=torch.uint8)
    kernels = cpu.grouping_kernels(isa)
    kernels.mark(_locate(None, tiles), chosen.data_ptr(), bits.data_ptr(), bits.shape[1], cpu.num_threads())
    return bits


def mean_of_groups(isa: str, scores: Tensor, order: Tensor, size: int) -> Tensor:
    """Compute `mean_of_groups`."""
    scores, means = scores.contiguous(), scores.new_empty(-(-len(order) // size), scores.shape[1])
    cpu.grouping_kernels(isa).means(
        scores.data_ptr(), order.data_ptr(), means.data_ptr(), *scores.shape, size, cpu.num_threads()
    )
    return means


def mean_of_kept(isa: str, scores: Tensor, tiles: Topology, order: Tensor, size: int) -> Tensor:
    """Compute `mean_of_kept`."""
    scores, means = scores.contiguous(), scores.new_empty(-(-len(order) // size), tiles.shape[1])
    least = float(scores.min()) if len(scores) else 0.0
    cpu.grouping_kernels(isa).means_of_kept(
        _locate(scores, tiles), least, order.data_ptr(), means.data_ptr(), size, cpu.num_threads()
    )
    return means


def _locate(values: Tensor | None, tiles: Topology) -> Any:
    sizes = tiles.num_units, tiles.columns, tiles.rows
    return locate_weight(values, tiles.ptr, tiles.col, tiles.order, sizes, *tiles.shape)


def register() -> None:
    """Let what groups rows use the kernels of the best instruction set this CPU has."""
    isa = cpu.grouping_instruction_sets()[0]
    for decision, kernel, dtype in (
        (ops.group_similar, group, torch.uint8),
        (ops.mark, mark, torch.bool),
        (ops.mean_of_groups, mean_of_groups, torch.float32),
        (ops.mean_of_kept, mean_of_kept, torch.float32),
    ):
        by_dtype = {dtype: functools.partial(kernel, isa)}
        register_kernel(decision, "cpu", choose(reference_of(decision), by_dtype))
