"""Which of the processes that train together this one is, under torchrun, under SLURM, or alone."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import distributed

# SLURM names no port. Those of jobs on one machine differ, and these are not used by the system.
FIRST_PORT, NUM_PORTS = 20_000, 10_000


@final
@dataclass(frozen=True)
class Processes:
    """This process among those that train together, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def alone(cls, device: str = "auto") -> Self:
        """Return one process that works for itself."""
        return cls(0, 1, _choose_device(device, 0))

    @property
    def is_first(self) -> bool:
        """Say whether this one writes files and shows progress."""
        return self.rank == 0

    def agree(self, wish: bool) -> bool:
        """Say whether any of them wishes something; each must ask."""
        return bool(self.sum(torch.tensor(float(wish))) > 0)

    def sum(self, numbers: torch.Tensor) -> torch.Tensor:
        """Add numbers up over all of them; each must ask."""
        if self.world == 1:
            return numbers
        added = numbers.to(self.device)
        distributed.all_reduce(added)
        return added.cpu()

    def share(self, text: str) -> str:
        """Return the text of the first of them; each must ask."""
        if self.world == 1:
            return text
        told = [text]
        distributed.broadcast_object_list(told, src=0, device=self.device)
        return told[0]


def is_first() -> bool:
    """Say whether this is the first of the processes that will join, or the only one."""
    return _find_place(os.environ)[0] == 0


@contextmanager
def join(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that train together, if this is one of several, and leave them in the end."""
    rank, local_rank, world = _find_place(os.environ)
    chosen = _choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world == 1:
        yield Processes(0, 1, chosen)
        return
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    store, rank, world = next(distributed.rendezvous("env://", rank, world))
    # torchrun starts them again with the store of those that were killed, in which their addresses still stand.
    attempt = distributed.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    distributed.init_process_group(backend, store=attempt, rank=rank, world_size=world)
    try:
        yield Processes(rank, world, chosen)
    finally:
        distributed.destroy_process_group()


def _find_place(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Return the rank, that on this machine, and how many there are."""
    if "WORLD_SIZE" in environment:
        rank = int(environment["RANK"])
        return rank, int(environment.get("LOCAL_RANK", rank)), int(environment["WORLD_SIZE"])
    # Only what srun starts is one of several; a job's script itself is alone.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        port = FIRST_PORT + int(environment["SLURM_JOB_ID"]) % NUM_PORTS
        os.environ.setdefault("MASTER_ADDR", _first_host(environment["SLURM_STEP_NODELIST"]))
        os.environ.setdefault("MASTER_PORT", str(port))
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
        rank, local_rank, world = (int(environment[name]) for name in names)
        return rank, local_rank, world
    return 0, 0, 1


def _first_host(hosts: str) -> str:
    if "[" not in hosts:
        return hosts.split(",", maxsplit=1)[0]
    told = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True)
    return told.stdout.split()[0]


def _choose_device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; write cpu, cuda, or auto") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={name}: PyTorch finds no CUDA device here; write cpu")
        return device if device.index is not None else torch.device("cuda", local_rank)
    return device
