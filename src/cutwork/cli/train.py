"""The command `cutwork train`: a recipe, or a run's options, to a folder. Nothing heavy is imported at the top."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from cutwork.cli.screen import STOPPED
from cutwork.lab.recipes import find_recipe
from cutwork.lab.training import Training

if TYPE_CHECKING:
    from cutwork.lab.judging import Judgement
    from cutwork.lab.records import Watch
    from cutwork.lab.run_folder import RunFolder

RUNS = Path("runs")


def make_train(given: Sequence[str]) -> Callable[..., None]:
    """Return the command, whose options begin with the values of the recipe that is asked for."""
    own = begin_with(given)

    def train(
        recipe: str | None = None,
        /,
        *,
        tiny: bool = False,
        output: Path | None = None,
        resume: Path | None = None,
        or_resume: bool = False,
        run: Training = own,
    ) -> None:
        """Train a model as a recipe says, or as options say, and write all of it into a folder.

        Behind the recipe every option may be given another value. 'cutwork ls recipes' lists the recipes.

        Args:
            recipe: Where all options begin.
            tiny: Take the recipe's twin that runs in a minute on two cores.
            output: Folder of the run; without it runs/RECIPE-TIME.
            resume: Go on with the run in this folder, or with the newest in it that has not ended.
            or_resume: Go on with the run in the output folder, if it holds one already; for programs that start again
                what was killed.
            run: All that decides what is trained, and how.
        """
        _run(recipe, output, resume, run, or_resume=or_resume)

    return train


def begin_with(given: Sequence[str]) -> Training:
    """Return the options that a command begins with: those of the recipe that stands behind it, if one does."""
    name = next((word for word in given[1:2] if not word.startswith("-")), None)
    return find_recipe(name, tiny="--tiny" in given) if name is not None else Training()


def _run(recipe: str | None, output: Path | None, resume: Path | None, options: Training, *, or_resume: bool) -> None:
    from cutwork.lab.loop import Stopped, train
    from cutwork.lab.run_folder import RunFolder, find_newest

    if or_resume and output is None:
        raise ValueError("--or-resume goes on with the run in a folder; name it by --output")
    if resume is not None:
        if recipe is not None or output is not None:
            raise ValueError("--resume goes on as the run was begun; give no recipe and no output beside it")
        folder = find_newest(resume)
        options, place = folder.read_config(), folder.path
    else:
        named = f"{recipe or options.model.partition(':')[0]}-{datetime.now():%Y%m%d-%H%M%S}"
        place = output or RUNS / named
        if or_resume and not _is_begun_as(RunFolder(place), options):
            raise ValueError(f"the run in {place} was begun with other options; --resume {place} goes on with those")
    is_first = os.environ.get("RANK", "0") == "0" and os.environ.get("SLURM_PROCID", "0") == "0"
    with show_training() if is_first else nullcontext() as watch:
        try:
            summary = train(options, place, resume=or_resume or resume is not None, watch=watch)
        except Stopped as stopped:
            print(f"cutwork: {stopped}", file=sys.stderr)
            raise SystemExit(STOPPED) from stopped
    if not is_first:
        return
    print(
        f"{summary['test_accuracy']:.2%} of the test data are right, {summary['best_accuracy']:.2%} at best; density "
        f"{summary['density']:.3g}, {summary['flops']:.3g} FLOPs, {summary['seconds']:.0f} s"
    )
    print(f"Written to {place}: the options, the curves, and the models last.safetensors and best.safetensors")


def _is_begun_as(folder: "RunFolder", options: Training) -> bool:
    """Say whether a run was begun with these options, if it was begun; a budget is what was chosen for it then."""
    from cutwork.lab.budget import as_begun

    begun = folder.read_config() if folder.is_begun else options
    return begun == options or begun == as_begun(options, begun)


@contextmanager
def show_training() -> Iterator["Watch"]:
    """Show a run as a bar on a terminal, otherwise as lines."""
    from rich.console import Console

    if not Console(stderr=True).is_terminal:
        yield Lines()
        return
    shown = Bar()
    with shown.bar:
        yield shown


@final
class Lines:
    """A run as plain lines."""

    def step(self, done: int, steps: int, record: Any) -> None:
        """Show that steps are done, and what was seen, if it was looked at."""
        if record:
            print(f"step {done}/{steps}: {_describe(record)}", file=sys.stderr, flush=True)

    def epoch(self, done: int, steps: int, judged: "Judgement") -> None:
        """Show how good the model is after an epoch."""
        print(f"step {done}/{steps}: {_describe_test(judged)}", file=sys.stderr, flush=True)

    def tell(self, what: str) -> None:
        """Show what was decided before the first step, and why."""
        print(what, file=sys.stderr, flush=True)


@final
class Bar:
    """A run as a bar, with a line above it for each epoch."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self.bar = Progress(
            TextColumn("training"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            # What does not fit is cut from here.
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            expand=True,
            # What the run came to goes to standard output, alone.
            console=Console(stderr=True),
            refresh_per_second=1,
        )
        self.task = self.bar.add_task("", total=None)

    def step(self, done: int, steps: int, record: Any) -> None:
        """Show that steps are done, and what was seen, if it was looked at."""
        self.bar.update(self.task, completed=done, total=steps)
        if record:
            self.bar.update(self.task, description=_describe(record))

    def epoch(self, done: int, steps: int, judged: "Judgement") -> None:
        """Show how good the model is after an epoch."""
        self.bar.console.print(f"step {done}: {_describe_test(judged)}")

    def tell(self, what: str) -> None:
        """Show what was decided before the first step, and why."""
        self.bar.console.print(what, highlight=False)


def _describe(record: Any) -> str:
    return (
        f"loss {record['loss']:.3f}, accuracy {record['accuracy']:.1%}, gradient {record['gradient_norm']:.2g}, "
        f"{record['samples_per_second']:,.0f} a second, {record['memory_mib']:,.0f} MiB"
    )


def _describe_test(judged: "Judgement") -> str:
    return f"test accuracy {judged.accuracy:.2%}, loss {judged.loss:.4f} ({judged.bits:.3f} bits)"
