"""The command `cutwork sweep`: a recipe with many options' values. Nothing heavy is imported at the top."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutwork.cli.screen import STOPPED
from cutwork.cli.train import begin_with
from cutwork.lab.sweeping.sweep import Sweep, read_over, spread
from cutwork.lab.training import Training
from cutwork.text import counted, in_columns

if TYPE_CHECKING:
    from cutwork.lab.sweeping.launching import Outcome


def make_sweep(given: Sequence[str]) -> Callable[..., None]:
    """Return the command, whose options begin with the values of the recipe that is asked for."""
    repeated: Any = tuple[str, ...]
    if given:
        from tyro.conf import UseAppendAction

        repeated = UseAppendAction[repeated]
    own = begin_with(given)

    def sweep(
        recipe: str | None = None,
        /,
        *,
        over: repeated,
        output: Path,
        tiny: bool = False,
        jobs: int = 1,
        slurm: tuple[str, ...] | None = None,
        dry: bool = False,
        run: Training = own,
    ) -> None:
        """Train with each combination of some options' values: --over density=0.5,0.2,0.1 --over seed=0,1,2.

        All other options are those of 'cutwork train'. A run that fails keeps no other from running; then the exit code
        is 1. The same command goes on where it was stopped, and tries again what failed; what has ended is kept. More
        values make more runs of the same sweep.

        Args:
            recipe: Where all options begin.
            over: An option and its values, divided by commas, or by | where values have commas themselves. Give it once
                for each option; every value is combined with all values of the others.
            output: Folder of the sweep; in it each run has its own, named by what differs.
            tiny: Take the recipe's twin that runs in a minute on two cores.
            jobs: So many runs at once, which share out the threads and the GPUs of this machine.
            slurm: Submit each run to SLURM instead, by submitit; behind it options of its executor, such as
                timeout_min=600 gpus_per_node=1 slurm_partition=NAME. With cluster=local it runs them here.
            dry: Only list the runs.
            run: All that decides what is trained, and how.
        """
        values: dict[str, list[Any]] = {}
        for text in over:
            option, given_values = read_over(text)
            values[option] = [*values.get(option, []), *given_values]
        found = Sweep(output, spread(run, values))
        if dry:
            found.check_free()
            for line in in_columns([(name, _state_of(found, name)) for name in found.runs], "<<"):
                print(line)
            return
        _run(found, jobs, slurm)

    return sweep


def _run(sweep: Sweep, jobs: int, slurm: tuple[str, ...] | None) -> None:
    from cutwork.lab.loop import Stopped
    from cutwork.lab.sweeping.launching import run_here
    from cutwork.lab.sweeping.slurm import open_executor, read_options, run_on_slurm

    options = None if slurm is None else read_options(slurm)
    with sweep.hold():
        executor = None if options is None else open_executor(sweep.folder / "slurm", options)
        left = sweep.left()
        lines = Lines(len(sweep.runs), len(sweep.runs) - len(left))
        try:
            if executor is None:
                run_here(sweep, left, lines.tell, jobs=jobs)
            else:
                run_on_slurm(sweep, left, lines.tell, executor)
        except Stopped as stopped:
            print(f"cutwork: {stopped}", file=sys.stderr)
            raise SystemExit(STOPPED) from stopped
    failed = len(sweep.left())
    done = f"{counted(len(sweep.runs), 'run')}: {len(sweep.runs) - failed} done"
    print(f"{done}, {failed} failed" if failed else done)
    print(f"To look at them: cutwork report {sweep.folder}")
    if failed:
        for name, error in lines.errors.items():
            print(f"cutwork: {name} failed: {error}", file=sys.stderr)
        raise SystemExit(1)


class Lines:
    """A sweep as lines, one for each run that has ended."""

    def __init__(self, count: int, done: int) -> None:
        self.count, self.done = count, done
        self.errors: dict[str, str] = {}
        if done:
            print(f"{done} of {counted(count, 'run')} {'is' if done == 1 else 'are'} done already", flush=True)

    def tell(self, outcome: "Outcome") -> None:
        """Say how a run ended."""
        self.done += 1
        if outcome.summary is not None:
            told = f"{outcome.summary['test_accuracy']:.2%} right, {outcome.summary['best_accuracy']:.2%} at best"
        elif outcome.error is not None:
            self.errors[outcome.name] = outcome.error
            told = f"failed: {outcome.error}"
        else:
            told = "stopped"
        print(f"{self.done}/{self.count} {outcome.name}: {told}, {outcome.seconds:.0f} s", flush=True)


def _state_of(sweep: Sweep, name: str) -> str:
    place = sweep.place(name)
    if place.is_done:
        return f"done, {place.read_summary()['test_accuracy']:.2%} right"
    error = place.read_error()
    return f"failed: {error}" if error else "begun" if place.is_begun else ""
