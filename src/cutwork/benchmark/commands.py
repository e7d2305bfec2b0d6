"""The subcommands of `cutwork benchmark`. Nothing heavy is imported before one of them runs."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, final

if TYPE_CHECKING:
    from cutwork.benchmark.comparison import Group
    from cutwork.benchmark.results import Row

Choice = TypeVar("Choice")

# What a shell expects of a program that somebody stopped.
STOPPED = 130
STOPPED_NOTE = "stopped before the end: this is what was measured until then"
# What a choice that does not suit a layer raises, as late as the layer is built.
USER_ERRORS = (ValueError, TypeError, OSError, ModuleNotFoundError)
QUICK_SECONDS = 10.0


@final
@dataclass(frozen=True)
class Settings:
    """What all measurements share.

    Args:
        forms: The forms to measure; without it all that there are. Dense fp32 is always measured.
        without: Forms to leave out, for example the slow bsr and csr.
        threads: Threads to compute with; without it PyTorch's own number.
        seconds: Time to measure for, about. A large grid takes longer: each form runs in five rounds at least.
        quick: Take the first of each list except densities, three rounds, and some 20 seconds altogether.
        output: Folder for results.json, results.csv and a picture of the curves.
        seed: Fixes every random number.
    """

    forms: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    threads: int | None = None
    seconds: float = 100.0
    quick: bool = False
    output: Path | None = None
    seed: int = 0

    def few(self, choices: Sequence[Choice]) -> Sequence[Choice]:
        """Return what to measure of a list."""
        return choices[:1] if self.quick else choices


def linear(
    settings: Settings,
    *,
    shapes: tuple[str, ...] = ("768x3072",),
    tokens: tuple[int, ...] = (197,),
    patterns: tuple[str, ...] = ("block:16", "block:32", "vector:16"),
    densities: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05),
    precisions: tuple[str, ...] = ("fp32",),
    passes: tuple[str, ...] = ("forward",),
) -> None:
    """Measure linear layers: tile kernels against dense ones and other packages' sparse formats.

    Args:
        settings: What all measurements share.
        shapes: Sizes of layers, inputs x outputs.
        tokens: Numbers of rows that a layer multiplies at once.
        patterns: Which masks are legal: block:16, block:64x16, vector:16, shuffled:16.
        densities: Shares of the weights that are kept.
        precisions: fp32, bf16, int8 (weights, and inputs as they come; forward only).
        passes: forward, dX, dW (the gradients of input and weight), step (all of them, and AdamW).
    """
    from cutwork.benchmark import linear as measured
    from cutwork.benchmark.choices import chosen, forms_of
    from cutwork.benchmark.passes import PASSES, TILE

    few = settings.few
    _measure(
        settings,
        lambda: measured.groups(
            shapes=few(shapes),
            tokens=few(tokens),
            patterns=few(patterns),
            densities=densities,
            precisions=few(chosen("precision", precisions, tuple(measured.FORMS[TILE]))),
            passes=few(chosen("pass", passes, PASSES)),
            forms=forms_of(settings.forms, settings.without, tuple(measured.FORMS)),
            seed=settings.seed,
        ),
    )


def conv(
    settings: Settings,
    *,
    shapes: tuple[str, ...] = ("128@16x16",),
    kernels: tuple[int, ...] = (3,),
    strides: tuple[int, ...] = (1,),
    batches: tuple[int, ...] = (16,),
    patterns: tuple[str, ...] = ("block:16", "block:32", "vector:16"),
    densities: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05),
    precisions: tuple[str, ...] = ("fp32",),
    passes: tuple[str, ...] = ("forward",),
) -> None:
    """Measure 2-d convolutions in channels-last memory: tile kernels against dense ones.

    Args:
        settings: What all measurements share.
        shapes: Channels @ height x width: 64@32x32, or 64:128@32x32 for other channels out than in.
        kernels: Heights of the kernels, which are square; padding keeps the size at stride 1.
        strides: Steps between the places of the kernel.
        batches: Numbers of images.
        patterns: Which masks are legal: block:16, block:64x16, vector:16, shuffled:16.
        densities: Shares of the weights that are kept.
        precisions: fp32, bf16.
        passes: forward, dX, dW (the gradients of input and weight), step (all of them, and AdamW).
    """
    from cutwork.benchmark import conv as measured
    from cutwork.benchmark.choices import chosen, forms_of
    from cutwork.benchmark.passes import PASSES, TILE

    few = settings.few
    _measure(
        settings,
        lambda: measured.groups(
            shapes=few(shapes),
            kernels=few(kernels),
            strides=few(strides),
            batches=few(batches),
            patterns=few(patterns),
            densities=densities,
            precisions=few(chosen("precision", precisions, tuple(measured.FORMS[TILE]))),
            passes=few(chosen("pass", passes, PASSES)),
            forms=forms_of(settings.forms, settings.without, tuple(measured.FORMS)),
            seed=settings.seed,
        ),
    )


def model(
    settings: Settings,
    *,
    names: tuple[str, ...] = ("tiny", "mlp:768x3072"),
    layers: tuple[str, ...] = ("all",),
    batches: tuple[int, ...] = (1, 197),
    patterns: tuple[str, ...] = ("block:16",),
    densities: tuple[float, ...] = (0.5, 0.2, 0.1),
    precisions: tuple[str, ...] = ("fp32",),
) -> None:
    """Measure whole models, forward: compressed layers against dense ones.

    Args:
        settings: What all measurements share.
        names: tiny, vit-b16, resnet50, llama-small (decoding one token), mlp:768x3072, linear:768x3072, timm:NAME,
            torchvision:NAME.
        layers: Which layers are sparse: all, linears, mlp, convs, or a glob over names. The first convolution never is.
        batches: Numbers of images, sequences or, for mlp and linear, tokens.
        patterns: Which masks are legal: block:16, block:64x16, vector:16, shuffled:16.
        densities: Shares of the weights that are kept.
        precisions: fp32, bf16.
    """
    _measure_models(settings, "model", "forward", names, layers, batches, patterns, densities, precisions)


def train(
    settings: Settings,
    *,
    names: tuple[str, ...] = ("linear:768x3072", "mlp:768x3072"),
    layers: tuple[str, ...] = ("all",),
    batches: tuple[int, ...] = (197,),
    patterns: tuple[str, ...] = ("block:16",),
    densities: tuple[float, ...] = (0.5, 0.2, 0.1),
    precisions: tuple[str, ...] = ("fp32",),
) -> None:
    """Measure whole training steps: forward, backward and AdamW, of layers, blocks and models.

    Args:
        settings: What all measurements share.
        names: linear:768x3072, mlp:768x3072 (norm, linear, GELU, linear, residual), tiny, vit-b16, resnet50, timm:NAME,
            torchvision:NAME.
        layers: Which layers are sparse: all, linears, mlp, convs, or a glob over names. The first convolution never is.
        batches: Numbers of images, sequences or, for mlp and linear, tokens.
        patterns: Which masks are legal: block:16, block:64x16, vector:16, shuffled:16.
        densities: Shares of the weights that are kept.
        precisions: fp32, bf16.
    """
    _measure_models(settings, "train", "step", names, layers, batches, patterns, densities, precisions)


def chance(settings: Settings, *, count: int = 200) -> None:
    """Measure layers of random shapes, masks and inputs as `pack` leaves them: is one ever slower than dense?

    Args:
        settings: What all measurements share; forms cannot be chosen.
        count: How many layers.
    """
    from cutwork.benchmark import chance as measured

    if count < 1:
        raise ValueError(f"count {count}; give at least 1")
    _measure(settings, lambda: settings.few(measured.groups(count, settings.seed)), summary=measured.summary)


COMMANDS: dict[str, Callable[..., None]] = {
    "linear": linear,
    "conv": conv,
    "model": model,
    "train": train,
    "chance": chance,
}


def _measure_models(
    settings: Settings,
    what: str,
    work: str,
    names: Sequence[str],
    layers: Sequence[str],
    batches: Sequence[int],
    patterns: Sequence[str],
    densities: Sequence[float],
    precisions: Sequence[str],
) -> None:
    from cutwork.benchmark import models as measured
    from cutwork.benchmark.choices import chosen, forms_of
    from cutwork.benchmark.passes import DTYPES

    few = settings.few
    _measure(
        settings,
        lambda: measured.groups(
            what=what,
            names=few(names),
            layers=few(layers),
            batches=few(batches),
            patterns=few(patterns),
            densities=densities,
            precisions=few(chosen("precision", precisions, tuple(DTYPES))),
            work=work,
            forms=forms_of(settings.forms, settings.without, measured.FORMS),
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
    from cutwork.benchmark.comparison import MIN_ROUNDS, Run
    from cutwork.benchmark.picture import draw
    from cutwork.kernels import activate

    if settings.seconds <= 0:
        raise ValueError(f"seconds {settings.seconds:g}; give more than 0")
    activate()
    run = Run()
    stopped: BaseException | None = None
    with _threads(settings.threads):
        pieces = groups()
        seconds = (min(settings.seconds, QUICK_SECONDS) if settings.quick else settings.seconds) / len(pieces)
        try:
            for group in _with_progress(pieces):
                run.compare(group, seconds=seconds, min_rounds=3 if settings.quick else MIN_ROUNDS)
        except (KeyboardInterrupt, *USER_ERRORS) as error:
            # What was measured is worth more than a clean stop.
            if not run.rows:
                raise
            stopped = error
            run.notes[STOPPED_NOTE] = None
        if summary is not None:
            run.notes[summary(run.rows)] = None
        results = run.results("cutwork " + shlex.join(sys.argv[1:]))
    print(results)
    if settings.output is not None:
        files = [*results.write(settings.output), *draw(results.rows, settings.output / "picture.svg")]
        print("\nWritten: " + ", ".join(map(str, files)))
    if isinstance(stopped, KeyboardInterrupt):
        raise SystemExit(STOPPED)
    if stopped is not None:
        raise stopped
    if not results.all_are_equal:
        raise SystemExit(1)


def _with_progress(groups: "Sequence[Group]") -> "Iterator[Group]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("measuring"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        # Results go to standard output, alone. The bar is drawn by a thread: seldom, it takes the processor's time.
        console=Console(stderr=True),
        refresh_per_second=1,
    )
    with bar:
        task = bar.add_task("", total=len(groups))
        for group in groups:
            bar.update(task, description=group.title, refresh=True)
            yield group
            bar.advance(task)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise ValueError(f"threads {count}; give at least 1")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
