"""The runs of a sweep as jobs of SLURM, which submitit hands in and starts again when their time is over."""

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, final

from cutwork.lab.loop import listening
from cutwork.lab.sweeping.launching import STOPPED, Tell, outcome_of, run_in_folder, stopped
from cutwork.lab.sweeping.sweep import Sweep
from cutwork.lab.training import Training

# Seconds between two looks at the jobs; SLURM itself is asked less often.
PAUSE = 0.5
NAME = "cutwork"


@final
class Job:
    """One run, as submitit calls it: in the job, and before a job whose time is over is handed in again."""

    def __init__(self, training: Training, folder: Path, arguments: list[str]) -> None:
        self.training, self.folder, self.arguments = training, folder, arguments

    def __call__(self) -> int:
        """Run it, or go on with it, and return its exit code."""
        sys.argv = self.arguments
        return run_in_folder(self.training, self.folder)

    def checkpoint(self) -> Any:
        """Hand the same in again: it goes on from the last checkpoint."""
        return importlib.import_module("submitit").helpers.DelayedSubmission(self)


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """Read the options of a job.

    >>> read_options(["timeout_min=60", "slurm_partition=gpu"])
    {'timeout_min': 60, 'slurm_partition': 'gpu'}
    """
    options: dict[str, Any] = {}
    for text in given:
        name, is_given, value = text.partition("=")
        if not is_given:
            raise ValueError(f"--slurm {text}: write options as in timeout_min=600")
        options[name] = int(value) if value.isdecimal() else value
    return options


def open_executor(folder: Path, options: Mapping[str, Any]) -> Any:
    """Return submitit's executor, which keeps its files in a folder; refuse options that it does not know."""
    try:
        submitit = importlib.import_module("submitit")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--slurm needs submitit; install it with pip install 'cutwork[slurm]'") from error
    cluster = options.get("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**{"name": NAME} | {name: options[name] for name in options if name != "cluster"})
    except (NameError, ValueError, RuntimeError) as error:
        raise ValueError(f"--slurm: {error}") from error
    return executor


def run_on_slurm(sweep: Sweep, names: Sequence[str], tell: Tell, executor: Any) -> None:
    """Hand in what is left of a sweep, and tell how each run ended; after a signal cancel all and raise Stopped.

    Jobs that an earlier call has left in the queue are not handed in again.
    """
    # Written down, because a program that is killed leaves its jobs behind.
    known = sweep.folder / "slurm" / "jobs.json"
    jobs = _find_queued(known, names, executor)
    missing = [name for name in names if name not in jobs]
    with executor.batch():
        handed = [
            executor.submit(Job(sweep.runs[name], sweep.place(name).path.resolve(), sys.argv)) for name in missing
        ]
    jobs |= dict(zip(missing, handed, strict=True))
    known.write_text(json.dumps({name: job.job_id for name, job in jobs.items()}, indent=1) + "\n")
    begin = perf_counter()
    is_told = is_stopped = False
    with listening() as is_asked:
        while jobs:
            if is_asked() and not is_told:
                is_told = True
                for job in jobs.values():
                    job.cancel(check=False)
            for name in [name for name, job in jobs.items() if job.done()]:
                job = jobs.pop(name)
                # One that was cancelled before it began has left nothing.
                code = STOPPED if is_told else 1
                outcome = outcome_of(sweep.place(name), name, perf_counter() - begin, code)
                is_stopped |= outcome.is_stopped
                tell(outcome)
            sleep(PAUSE)
    if is_stopped:
        raise stopped(sweep)


def _find_queued(known: Path, names: Sequence[str], executor: Any) -> dict[str, Any]:
    """Return the jobs of an earlier call that have not ended."""
    if executor.cluster != "slurm" or not known.exists():
        return {}
    kind = importlib.import_module("submitit").SlurmJob
    jobs = {name: kind(known.parent, number) for name, number in json.loads(known.read_text()).items() if name in names}
    return {name: job for name, job in jobs.items() if not job.done(force_check=True)}
