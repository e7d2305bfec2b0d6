"""What is seen while a run goes on: measured between lines, written down, and shown."""

import importlib
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, final

import torch
from torch import Tensor

from cutwork.lab.judging import Judgement
from cutwork.lab.run_folder import Record, RunFolder

MIB = 2**20
# Of the operating systems, macOS counts the memory of a process in bytes and Linux in KiB.
UNIT_OF_MEMORY = 1 if sys.platform == "darwin" else 1024


class Watch(Protocol):
    """Shows a run to whoever waits for it."""

    def step(self, done: int, steps: int, record: Record) -> None:
        """Show that steps are done, and what was seen, if it was looked at."""

    def epoch(self, done: int, steps: int, judged: Judgement) -> None:
        """Show how good the model is after an epoch."""

    def tell(self, what: str) -> None:
        """Show what was decided before the first step, and why."""


@final
class Meter:
    """Measures speed and memory between two lines, and lets a watch see each step."""

    def __init__(self, every: int, watch: Watch | None, steps: int) -> None:
        if every < 1:
            raise ValueError(f"log_every={every}: write a line at least every so many steps, from 1 on")
        self.every, self.watch, self.steps = every, watch, steps
        self.begin = self.start = perf_counter()
        self.samples = self.samples_in_all = 0

    def is_due(self, step: int) -> bool:
        """Say whether a line is written after this step."""
        return step % self.every == 0 or step == self.steps

    def count(self, samples: int) -> None:
        """Count what was learned from."""
        self.samples += samples
        self.samples_in_all += samples

    def read(self, step: int, found: Mapping[str, Tensor]) -> dict[str, float]:
        """Return what is to be written after a step; nothing after most of them."""
        record: dict[str, float] = {}
        if self.is_due(step):
            record = {name: float(value) for name, value in found.items()}
            now = perf_counter()
            record["samples_per_second"] = self.samples / (now - self.start)
            record["memory_mib"] = _memory()
            self.start, self.samples = now, 0
        if self.watch is not None:
            self.watch.step(step, self.steps, record)
        return record

    def tell_epoch(self, step: int, judged: Judgement) -> None:
        """Show how good the model is; the time that took is no training."""
        if self.watch is not None:
            self.watch.epoch(step, self.steps, judged)
        self.start, self.samples = perf_counter(), 0

    def totals(self) -> dict[str, float]:
        """Return how long the run took since it was started, or resumed."""
        return {"seconds": perf_counter() - self.begin, "memory_mib": _memory()}


class Log(Protocol):
    """Takes lines of a run's curves, one after the other."""

    def add(self, record: Record) -> None:
        """Take one."""


@final
class Logs:
    """Several logs at once; none in processes that do not write."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self.logs = logs

    def add(self, record: Record) -> None:
        """Give a line to each of them."""
        for log in self.logs:
            log.add(record)


@contextmanager
def open_logs(names: Sequence[str], folder: RunFolder, *, is_first: bool) -> Iterator[Logs]:
    """Open the run's own curves and logs of these names, in the one process that writes."""
    if not is_first:
        yield Logs([])
        return
    opened = [LOGS[name](folder.path) for name in names]
    try:
        yield Logs([folder, *opened])
    finally:
        for log in opened:
            log.close()


def check_logs(names: Sequence[str]) -> None:
    """Raise ValueError unless there are logs of these names."""
    for name in names:
        if name not in LOGS:
            raise ValueError(f"unknown log {name!r}; write {', '.join(LOGS)}; curves.jsonl and .csv are always written")


@final
class TensorBoard:
    """Curves for TensorBoard, by step."""

    def __init__(self, folder: Path) -> None:
        self.writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def add(self, record: Record) -> None:
        """Take a line."""
        for name, value in record.items():
            self.writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


@final
class WeightsAndBiases:
    """Curves for Weights & Biases, by step."""

    def __init__(self, folder: Path) -> None:
        wandb: Any = importlib.import_module("wandb")
        self.run = wandb.init(dir=str(folder), name=folder.name, resume="allow")

    def add(self, record: Record) -> None:
        """Take a line."""
        self.run.log(dict(record), step=record["step"])

    def close(self) -> None:
        """Write what is left."""
        self.run.finish()


LOGS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def _memory() -> float:
    """Return the most memory that was used, in MiB: that of the GPU where one is used, else of the process."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT_OF_MEMORY / MIB
