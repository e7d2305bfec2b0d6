"""Weights shared out over the processes that train together (FSDP2), and checkpoints of which each writes its part."""

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cutwork.distributed import whole
from cutwork.files.checkpoint import load, save
from cutwork.lab.processes import Processes
from cutwork.lab.training import Training
from cutwork.training.sparsifier import Sparsifier

if TYPE_CHECKING or torch.distributed.is_available():
    from torch.distributed import checkpoint as parts
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

UNFINISHED = ".saving"
# What no part holds: numbers, and what the sparsifier counts.
REST = "rest.safetensors"
CONTAINERS = nn.Sequential | nn.ModuleList


def check_shardable(training: Training) -> None:
    """Raise ValueError where a run asks for something that does not work with weights that are shared out."""
    given = training.running
    refused = {
        "ema": (given.ema, "an average of weights needs all of them in one place"),
        "fused": (given.fused, "layers that do what stands next to them are not shared out"),
        "compiled": (given.compiled, "sharded models are not compiled"),
        "precision": (given.precision == "fp16", "fp16 needs its loss scaled by what all processes see; use bf16"),
    }
    for name, (is_asked, reason) in refused.items():
        if is_asked:
            raise ValueError(f"{name}={getattr(given, name)!r} does not work with shard: {reason}; leave one out")


def shard(model: nn.Module, processes: Processes) -> None:
    """Share out the weights of a model over all processes, in place: block by block, and then the rest."""
    mesh = init_device_mesh(processes.device.type, (processes.world,))
    for block in find_blocks(model).values():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return what stands in the model's outermost lists of modules, which run one after the other, by their names.

    What shares a parameter with the rest of the model stays with that.

    >>> [*find_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 2))))]
    ['0', '2.0']
    """
    holders: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        parent = model.get_submodule(name.rpartition(".")[0]) if name else None
        is_inside = any(name.startswith(f"{other}.") for other in found)
        if not isinstance(parent, CONTAINERS) or isinstance(module, CONTAINERS) or is_inside:
            continue
        owners = [owner for parameter in module.parameters() for owner in holders[id(parameter)]]
        if owners and all(owner.startswith(f"{name}.") for owner in owners):
            found[name] = module
    return found


def gather(model: nn.Module, into: nn.Module | None) -> None:
    """Put the whole tensors of a sharded model into a plain one, in the process that has one; each must ask."""
    state: dict[str, Any] = {}
    for name, value in model.state_dict().items():
        full = whole(value) if isinstance(value, Tensor) else value
        if into is not None:
            state[name] = full
    if into is not None:
        into.load_state_dict(state)


@torch.no_grad()
def share_statistics(model: nn.Module) -> None:
    """Give the buffers of numbers, such as the statistics of batch norms, those of the first process; each must ask."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            torch.distributed.broadcast(buffer, src=0)


def save_parts(
    folder: Path,
    name: str,
    model: nn.Module,
    optimizer: Optimizer,
    sparsifier: Sparsifier | None,
    extra: Mapping[str, Any],
    processes: Processes,
) -> None:
    """Save what it takes to go on as a folder of this name, to which each process writes its part.

    It is there whole or not at all, and what was saved before goes only then.
    """
    place = folder / name
    unfinished = folder / f"{name}{UNFINISHED}"
    if processes.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"*{UNFINISHED}"):
            shutil.rmtree(left)
    # The same step comes to the same, so what is there stays.
    if processes.agree(processes.is_first and place.exists()):
        return
    of_model, of_optimizer = get_state_dict(model, optimizer)
    state = {"model": of_model, "optimizer": of_optimizer}
    with _naming(place):
        parts.save(state, checkpoint_id=unfinished, no_dist=processes.world == 1)
    if processes.is_first:
        counted = {} if sparsifier is None else {"sparsifier": sparsifier.state_dict()}
        save(nn.Identity(), unfinished / REST, extra={**extra, **counted})
        unfinished.rename(place)
        for older in folder.iterdir():
            if older != place:
                shutil.rmtree(older)
    processes.agree(False)


def load_parts(
    place: Path, model: nn.Module, optimizer: Optimizer, sparsifier: Sparsifier | None, processes: Processes
) -> dict[str, Any]:
    """Load what `save_parts` has saved, also by another number of processes, and return what was saved besides."""
    extra = load(place / REST, nn.Identity()).extra
    # This makes the optimizer take a step of its own, which counts for nothing.
    of_model, of_optimizer = get_state_dict(model, optimizer)
    with _naming(place):
        state = {"model": of_model, "optimizer": of_optimizer}
        parts.load(state, checkpoint_id=place, no_dist=processes.world == 1)
    set_state_dict(model, optimizer, model_state_dict=of_model, optim_state_dict=of_optimizer)
    if sparsifier is not None:
        sparsifier.load_state_dict(extra.pop("sparsifier"))
    return extra


def find_parts(folder: Path) -> Path | None:
    """Return the newest whole checkpoint in a folder of those that `save_parts` writes."""
    found = [place for place in folder.glob("*") if not place.name.endswith(UNFINISHED)]
    return max(found, key=lambda place: place.name, default=None)


@contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Name a checkpoint that some process could not write or read; PyTorch's own error is no Exception."""
    try:
        with warnings.catch_warnings():
            # One process alone may go on with a run that several began.
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            yield
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise OSError(f"{place} cannot be written or read: {type(first).__name__}: {first}") from error
