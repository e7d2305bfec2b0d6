"""The runs of a sweep on this machine: each in a process of its own, one after the other or some at once."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from time import perf_counter
from typing import Any, final

import torch

from cutwork.lab.loop import Stopped, listening, train
from cutwork.lab.run_folder import RunFolder
from cutwork.lab.sweeping.sweep import Sweep
from cutwork.lab.training import Training

# Seconds after which the program looks whether it was asked to stop.
PAUSE = 0.2
# With it a process ends that was stopped and has saved what it had.
STOPPED = 130


@final
@dataclass(frozen=True)
class Outcome:
    """How a run of a sweep ended: with a summary, with an error, or, if it was stopped, with neither."""

    name: str
    seconds: float
    summary: dict[str, Any] | None = None
    error: str | None = None

    @property
    def is_stopped(self) -> bool:
        """Say whether it was stopped, and can go on."""
        return self.summary is None and self.error is None


Tell = Callable[[Outcome], None]


def stopped(sweep: Sweep) -> Stopped:
    """Return what to raise when a sweep was stopped."""
    return Stopped(f"stopped; {len(sweep.left())} of {len(sweep.runs)} runs are left; the same command goes on")


@final
@dataclass(frozen=True)
class Share:
    """What of this machine a run may use: so many threads, unless all of it, and one of its GPUs, if it has several."""

    threads: int | None = None
    device: int | None = None

    def take(self) -> None:
        """Let this process use no more."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        if self.device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = str(self.device)


def shares_of(jobs: int) -> list[Share]:
    """Return what each of so many runs at once may use."""
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: run at least one at once")
    if jobs == 1:
        return [Share()]
    threads, devices = max(1, torch.get_num_threads() // jobs), torch.cuda.device_count()
    return [Share(threads, place % devices if devices > 1 else None) for place in range(jobs)]


def run_here(sweep: Sweep, names: Sequence[str], tell: Tell, *, jobs: int = 1) -> None:
    """Run what is left of a sweep, and tell how each run ended; raise Stopped after a signal, when all have saved.

    A run that fails keeps no other from running.
    """
    context = multiprocessing.get_context("forkserver")
    # What all of them import is imported once.
    context.set_forkserver_preload([__name__])
    waiting, free, running = [*reversed(names)], shares_of(jobs), {}
    is_told = is_stopped = False
    with listening() as is_asked:
        try:
            while running or (waiting and not is_asked()):
                while waiting and free and not is_asked():
                    name, share = waiting.pop(), free.pop(0)
                    given = sweep.runs[name], sweep.place(name).path, sys.argv, share
                    process = context.Process(target=run_apart, args=given, name=name)
                    process.start()
                    running[process.sentinel] = process, share, perf_counter()
                if is_asked() and not is_told:
                    is_told = True
                    for process, _, _ in running.values():
                        process.terminate()
                for ended in wait([*running], timeout=PAUSE):
                    process, share, begin = running.pop(ended)
                    process.join()
                    free.append(share)
                    taken = perf_counter() - begin
                    outcome = outcome_of(sweep.place(process.name), process.name, taken, process.exitcode)
                    is_stopped |= outcome.is_stopped
                    tell(outcome)
        finally:
            for process, _, _ in running.values():
                process.terminate()
                process.join()
    if waiting or is_stopped:
        raise stopped(sweep)


def run_apart(training: Training, folder: Path, arguments: list[str], share: Share) -> None:
    """Run one of a sweep in a process of its own, which ends with the one that began it, and write down what fails."""
    # A terminal stops what it started; that tells this process, once.
    os.setsid()
    sys.argv = arguments
    share.take()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(run_in_folder(training, folder))


def run_in_folder(training: Training, folder: Path) -> int:
    """Run one of a sweep, or go on with it, and return the exit code: 0 when done, 1 when it failed, 130 if stopped."""
    place = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    place.error.unlink(missing_ok=True)
    with place.output.open("a") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    try:
        train(training, folder, resume=True)
    except (Stopped, KeyboardInterrupt):
        return STOPPED
    except Exception as error:
        place.fail(error)
        return 1
    return 0


def outcome_of(place: RunFolder, name: str, seconds: float, code: int | None) -> Outcome:
    """Return how a run ended, by what it left and by the exit code of its process."""
    if place.is_done:
        return Outcome(name, seconds, summary=place.read_summary())
    error = place.read_error()
    if error is None and code not in (STOPPED, -signal.SIGTERM):
        told = f"killed by signal {-code}" if code and code < 0 else f"its process ended with code {code}"
        error = f"{told}; see {place.output}"
    return Outcome(name, seconds, error=error)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
