"""Whole tensors out of the parts that FSDP2 leaves on a rank, and back; plain tensors pass through unchanged."""

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING or torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, distribute_tensor


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Say whether a rank holds only a part of this tensor."""
    return torch.distributed.is_available() and isinstance(tensor, DTensor)


def is_distributed() -> bool:
    """Say whether this is one of several processes that train together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def num_processes() -> int:
    """Return how many processes train together."""
    return torch.distributed.get_world_size() if is_distributed() else 1


def average(part: Tensor) -> Tensor:
    """Average a tensor over the processes that train together, in place, and return it; each of them must ask."""
    if num_processes() > 1:
        torch.distributed.all_reduce(part)
        part /= num_processes()
    return part


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this rank holds."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor; every rank must call this in the same order."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def part_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return the part of a whole tensor, the same on all ranks, that belongs beside `like`; nothing is sent."""
    if is_sharded(like):
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor


def processes_agree(*indices: Tensor) -> bool:
    """Say whether all processes hold the same vectors of integers; each of them must ask."""
    sums = []
    for index in indices:
        places = torch.arange(1, len(index) + 1, device=index.device)
        sums += [places.new_tensor(len(index)), (index.long() * (places * 2_654_435_761 % 1_000_003)).sum()]
    lowest = torch.stack(sums)
    highest = lowest.clone()
    torch.distributed.all_reduce(lowest, torch.distributed.ReduceOp.MIN)
    torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    return torch.equal(lowest, highest)


def same_on_all_ranks(tensor: Tensor, *, of: Tensor) -> bool:
    """Say whether all ranks that share the tensor `of` hold the same bool tensor; each of them must ask."""
    if not is_sharded(of):
        return True
    places = torch.arange(1, tensor.numel() + 1, device=tensor.device)
    checksum = (tensor.flatten() * (places * 2_654_435_761 % 1_000_003)).sum()
    lowest, highest = checksum.clone(), checksum.clone()
    for group in of.device_mesh.get_all_groups():
        torch.distributed.all_reduce(lowest, torch.distributed.ReduceOp.MIN, group)
        torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX, group)
    return bool(lowest == highest)
