"""The subcommands of `cutwork benchmark`. Nothing heavy is imported before one of them runs."""

import math
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, TypeVar, final

if TYPE_CHECKING:
    from cutwork.bench.results import Results, Row
    from cutwork.bench.run import Group, Run

Choice = TypeVar("Choice")

# What a shell expects of a program that somebody stopped.
STOPPED = 130
STOPPED_NOTE = "stopped before the end: this is what was measured until then"
# Of a form that takes so long somebody who waits wants to hear.
LONG_S = 2.0
QUICK_SECONDS = 10.0
# Of random layers; more would take days.
MOST_LAYERS = 100_000


@final
@dataclass(frozen=True)
class Settings:
    """What all measurements share.

    Args:
        threads: Threads to compute with; without it as many as PyTorch takes by itself.
        seconds: How long all of it may take, about, with building, checking and compiling. A form that would take far
            more than its share is left out, and the results say so.
        quick: Take the first of each list except densities, and at most 10 seconds.
        output: Folder for results.json, results.csv and a picture of the curves.
        seed: Fixes every random number.
    """

    threads: int | None = None
    seconds: float = 100.0
    quick: bool = False
    output: Path | None = None
    seed: int = 0

    def few(self, choices: Sequence[Choice]) -> Sequence[Choice]:
        """Return what to measure of a list."""
        return choices[:1] if self.quick else choices


@final
@dataclass(frozen=True)
class Grid:
    """What is sparse, and in which forms it is measured.

    Args:
        patterns: Which masks are legal: block:16, block:64x16, vector:16, shuffled:16.
        densities: Shares of the weights that are kept.
        precisions: fp32, bf16; of linear layers also int8 (weights, and inputs as they come; forward only).
        forms: The forms to measure; without it all that there are. Dense fp32 is always measured. Layers: dense,
            compiled, tile; linear ones also onnx, bsr, bsr-left, csr, csr-left, scipy. Models: dense, compiled, packed,
            fused.
        without: Forms to leave out, for example the slow bsr and csr.
    """

    patterns: tuple[str, ...] = ("block:16", "block:32", "vector:16")
    densities: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05)
    precisions: tuple[str, ...] = ("fp32",)
    forms: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def precisions_of(self, known: Sequence[str]) -> tuple[str, ...]:
        """Return the precisions to measure, if all are known."""
        from cutwork.bench.choices import chosen

        return chosen("precision", self.precisions, known)

    def forms_of(self, known: Sequence[str]) -> tuple[str, ...]:
        """Return the forms to measure, if all are known."""
        from cutwork.bench.choices import chosen

        without = chosen("form", self.without, known) if self.without else ()
        return tuple(form for form in chosen("form", self.forms or known, known) if form not in without)


@final
@dataclass(frozen=True)
class Models:
    """Which models are measured, and which of their layers are sparse.

    Args:
        names: tiny, vit-b16, resnet50, llama-small (decodes one token; not to train), linear:768x3072, timm:NAME,
            torchvision:NAME, and mlp:768x3072, which is norm, linear, GELU, linear and a residual.
        layers: Which layers are sparse: all, linears, mlp, convs, or a glob over names. The first convolution never is.
        batches: Numbers of images, sequences or, for mlp and linear, tokens.
    """

    names: tuple[str, ...] = ("tiny", "mlp:768x3072")
    layers: tuple[str, ...] = ("all",)
    batches: tuple[int, ...] = (1, 197)


OF_LAYERS = Grid()
OF_MODELS = Grid(patterns=("block:16",), densities=(0.5, 0.2, 0.1))
TO_RUN = Models()
TO_TRAIN = Models(names=("linear:768x3072", "mlp:768x3072"), batches=(197,))


def linear(
    settings: Settings,
    grid: Grid = OF_LAYERS,
    *,
    shapes: tuple[str, ...] = ("768x3072",),
    tokens: tuple[int, ...] = (197,),
    passes: tuple[str, ...] = ("forward",),
) -> None:
    """Measure linear layers: tile kernels against dense ones and other packages' sparse formats.

    Args:
        settings: What all measurements share.
        grid: What is sparse, and in which forms it is measured.
        shapes: Sizes of layers, inputs x outputs: 768x3072 has 768 inputs and is called 768->3072 in the results.
        tokens: Numbers of rows that a layer multiplies at once.
        passes: forward, dX, dW (the gradients of input and weight), step (all of them, and AdamW).
    """
    from cutwork.bench import linear as measured
    from cutwork.bench.choices import chosen
    from cutwork.bench.passes import PASSES, TILE

    few = settings.few
    _measure(
        settings,
        lambda: measured.groups(
            shapes=few(shapes),
            tokens=few(tokens),
            patterns=few(grid.patterns),
            densities=grid.densities,
            precisions=few(grid.precisions_of(tuple(measured.FORMS[TILE]))),
            passes=few(chosen("pass", passes, PASSES)),
            forms=grid.forms_of(tuple(measured.FORMS)),
            seed=settings.seed,
        ),
    )


def conv(
    settings: Settings,
    grid: Grid = OF_LAYERS,
    *,
    shapes: tuple[str, ...] = ("128@16x16",),
    kernels: tuple[int, ...] = (3,),
    strides: tuple[int, ...] = (1,),
    batches: tuple[int, ...] = (16,),
    passes: tuple[str, ...] = ("forward",),
) -> None:
    """Measure 2-d convolutions in channels-last memory: tile kernels against dense ones.

    Args:
        settings: What all measurements share.
        grid: What is sparse, and in which forms it is measured.
        shapes: Channels @ height x width: 64@32x32, or 64:128@32x32 for other channels out than in.
        kernels: Heights of the kernels, which are square; of odd ones padding keeps the image's size at stride 1.
        strides: Steps between the places of the kernel.
        batches: Numbers of images.
        passes: forward, dX, dW (the gradients of input and weight), step (all of them, and AdamW).
    """
    from cutwork.bench import conv as measured
    from cutwork.bench.choices import chosen
    from cutwork.bench.passes import PASSES, TILE

    few = settings.few
    _measure(
        settings,
        lambda: measured.groups(
            shapes=few(shapes),
            kernels=few(kernels),
            strides=few(strides),
            batches=few(batches),
            patterns=few(grid.patterns),
            densities=grid.densities,
            precisions=few(grid.precisions_of(tuple(measured.FORMS[TILE]))),
            passes=few(chosen("pass", passes, PASSES)),
            forms=grid.forms_of(tuple(measured.FORMS)),
            seed=settings.seed,
        ),
    )


def model(settings: Settings, grid: Grid = OF_MODELS, models: Models = TO_RUN) -> None:
    """Measure whole models, forward: compressed layers against dense ones.

    Args:
        settings: What all measurements share.
        grid: What is sparse, and in which forms it is measured.
        models: Which models are measured, and which of their layers are sparse.
    """
    _measure_models(settings, grid, models, "model", "forward")


def train(settings: Settings, grid: Grid = OF_MODELS, models: Models = TO_TRAIN) -> None:
    """Measure whole training steps: forward, backward and AdamW, of layers, blocks and models.

    Args:
        settings: What all measurements share.
        grid: What is sparse, and in which forms it is measured.
        models: Which models are measured, and which of their layers are sparse.
    """
    _measure_models(settings, grid, models, "train", "step")


def chance(settings: Settings, *, count: int = 200) -> None:
    """Measure layers of random shapes, masks and inputs as `pack` leaves them: is one ever slower than dense?

    Args:
        settings: What all measurements share.
        count: How many layers.
    """
    from cutwork.bench import chance as measured

    if not 1 <= count <= MOST_LAYERS:
        raise ValueError(f"count {count}; give 1 to {MOST_LAYERS}")
    _measure(settings, lambda: settings.few(measured.groups(count, settings.seed)), summary=measured.summary)


COMMANDS: dict[str, Callable[..., None]] = {
    "linear": linear,
    "conv": conv,
    "model": model,
    "train": train,
    "chance": chance,
}


def _measure_models(settings: Settings, grid: Grid, models: Models, what: str, work: str) -> None:
    from cutwork.bench import models as measured
    from cutwork.bench.passes import DTYPES

    few = settings.few
    _measure(
        settings,
        lambda: measured.groups(
            what=what,
            names=few(models.names),
            layers=few(models.layers),
            batches=few(models.batches),
            patterns=few(grid.patterns),
            densities=grid.densities,
            precisions=few(grid.precisions_of(tuple(DTYPES))),
            work=work,
            forms=grid.forms_of(measured.FORMS),
            seed=settings.seed,
        ),
    )


def _measure(
    settings: Settings,
    groups: Callable[[], "Sequence[Group]"],
    summary: "Callable[[Sequence[Row]], str] | None" = None,
) -> None:
    """Measure groups with a bar of progress, print what came out and write it to the folder.

    The exit code is 1 if a form computed something else. Whatever ends it early, what was measured is kept.
    """
    from cutwork.bench.choices import check_seconds, check_seed, make_folder
    from cutwork.bench.run import Run

    check_seconds(settings.seconds)
    check_seed(settings.seed)
    run = Run()
    stopped: BaseException | None = None
    seconds = min(settings.seconds, QUICK_SECONDS) if settings.quick else settings.seconds
    with _threads(settings.threads):
        try:
            pieces = groups()
            if settings.output is not None:
                make_folder(settings.output)
            _measure_all(pieces, run, seconds)
            if not run.rows:
                raise ValueError(f"nothing was measured: {' '.join(run.notes)}")
        except (KeyboardInterrupt, Exception) as error:
            # What was measured is worth more than a clean stop.
            stopped = error
        if stopped is not None and not run.rows:
            if isinstance(stopped, KeyboardInterrupt):
                print("cutwork: nothing was measured yet, nothing is written", file=sys.stderr)
            raise stopped
        if stopped is not None:
            run.notes[STOPPED_NOTE] = None
        if summary is not None:
            run.notes[summary(run.rows)] = None
        results = run.results("cutwork " + shlex.join(sys.argv[1:]))
    _keep(results, settings.output)
    if stopped is not None:
        raise stopped
    if not results.all_are_equal:
        raise SystemExit(1)


def _measure_all(groups: "Sequence[Group]", run: "Run", seconds: float) -> None:
    """Measure groups one after the other until the time is up; what one does not need is left to the rest."""
    end = perf_counter() + seconds
    with _progress(len(groups), seconds) as show:
        run.tell = show.form
        for number, group in enumerate(groups):
            left = end - perf_counter()
            if number and left <= 0:
                run.notes[
                    f"the time was up before {len(groups) - number} of {len(groups)} pieces, the first of them "
                    f"{group.title}; give more --seconds"
                ] = None
                return
            show.group(number, group.title, left)
            run.compare(group, seconds=left / (len(groups) - number))


def _keep(results: "Results", folder: Path | None) -> None:
    """Write the results to a folder and print them: first what lasts, since a reader of the other may be gone."""
    failed, files = None, []
    if folder is not None:
        try:
            files = _write(results, folder)
        except OSError as error:
            failed = error
    print(results)
    if failed is not None:
        raise ValueError(f"output {folder}: {failed.strerror}; the table above is all that is left") from failed
    if files:
        print("\nWritten: " + ", ".join(map(str, files)))


def _write(results: "Results", folder: Path) -> list[Path]:
    from cutwork.bench.picture import draw

    return [*results.write(folder), *draw(results, folder / "picture.svg")]


class Progress(Protocol):
    """Shows somebody who waits what is being measured, and how long still."""

    def group(self, number: int, title: str, left: float) -> None:
        """Show that a group is begun, and how many seconds are left for all that are."""

    def form(self, name: str, seconds: float) -> None:
        """Show that a form of the group is looked at, for so many seconds, about."""


@final
class Lines:
    """Progress as plain lines: one a group, and one for each form that takes long."""

    def __init__(self, count: int) -> None:
        self.count = count

    def group(self, number: int, title: str, left: float) -> None:
        print(f"measuring {number + 1}/{self.count}: {title}; {left:.0f} s left", file=sys.stderr, flush=True)

    def form(self, name: str, seconds: float) -> None:
        if seconds >= LONG_S:
            print(f"  {name}, about {seconds:.0f} s", file=sys.stderr, flush=True)


@final
class Bar:
    """Progress as a bar of groups on a terminal."""

    def __init__(self, count: int, seconds: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self.bar = Progress(
            TextColumn("measuring"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn(f"of about {timedelta(seconds=math.ceil(seconds))}"),
            # What does not fit is cut from the title, not from the numbers.
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            # Results go to standard output, alone.
            console=Console(stderr=True),
            expand=True,
            # The bar is drawn by a thread: seldom, it takes the processor's time.
            refresh_per_second=1,
        )
        self.task = self.bar.add_task("", total=count)
        self.title = ""

    def group(self, number: int, title: str, left: float) -> None:
        self.title = title
        self.bar.update(self.task, completed=number, description=title, refresh=True)

    def form(self, name: str, seconds: float) -> None:
        self.bar.update(self.task, description=f"{name}: {self.title}", refresh=seconds >= LONG_S)


@contextmanager
def _progress(count: int, seconds: float) -> "Iterator[Progress]":
    from rich.console import Console

    if not Console(stderr=True).is_terminal:
        yield Lines(count)
        return
    shown = Bar(count, seconds)
    with shown.bar:
        yield shown
        shown.bar.update(shown.task, completed=count)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    from cutwork.bench.choices import check_threads

    before = torch.get_num_threads()
    if count is not None:
        check_threads(count)
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
