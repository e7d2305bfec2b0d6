"""The subcommands of `cutwork benchmark`. Nothing heavy is imported before one of them runs."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar, final

from cutwork.cli.screen import CommandGroup, show_progress, use_threads

if TYPE_CHECKING:
    from cutwork.bench.layers import Choices, Layer, PassTable
    from cutwork.bench.results import Measurement, Results
    from cutwork.bench.run import Group, Run

Choice = TypeVar("Choice")

STOPPED_NOTE = "stopped before the end: this is what was measured until then"
QUICK_SECONDS = 10.0
# More random layers than that would take days.
MOST_LAYERS = 100_000


@final
@dataclass(frozen=True)
class Settings:
    """What all measurements share.

    Args:
        threads: Threads to compute with; by default as many as PyTorch uses.
        seconds: About how long everything may take, with building, checking and compiling. A form that would take far
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
        precisions: fp32, bf16; linear layers also int8 (weights and inputs, forward only).
        forms: The forms to measure, by default all. Dense fp32 is always measured. Layers: dense, compiled, tile;
            linear layers also onnx, bsr, bsr-left, csr, csr-left, scipy. Models: dense, compiled, packed, fused; to
            train also moving, of which each step ends in a move of RigL.
        without: Forms to leave out, for example the slow bsr and csr.
    """

    patterns: tuple[str, ...] = ("block:16", "block:32", "vector:16")
    densities: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05)
    precisions: tuple[str, ...] = ("fp32",)
    forms: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def choose(
        self, settings: Settings, passes: Sequence[str], *, precisions: Sequence[str], forms: Sequence[str]
    ) -> "Choices":
        """Return what to measure of the known precisions and forms."""
        from cutwork.bench.choices import choose
        from cutwork.bench.layers import Choices

        few = settings.few
        without = choose("form", self.without, forms) if self.without else ()
        return Choices(
            patterns=few(self.patterns),
            densities=self.densities,
            precisions=few(choose("precision", self.precisions, precisions)),
            passes=few(passes),
            forms=[form for form in choose("form", self.forms or forms, forms) if form not in without],
            seed=settings.seed,
        )


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
        shapes: Sizes of layers, inputs x outputs: 768x3072 has 768 inputs and is called 768->3072 in the results.
        tokens: Numbers of rows that a layer multiplies at once.
        passes: forward, dX, dW (the gradients of input and weight), step (all of them, and AdamW).
    """

    def groups() -> "list[Group]":
        from cutwork.bench.linear import LINEAR_FORMS, layers

        few = settings.few
        return _groups_of(layers(shapes=few(shapes), tokens=few(tokens)), LINEAR_FORMS, settings, grid, passes)

    _measure(settings, groups)


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
        shapes: Channels @ height x width: 64@32x32, or 64:128@32x32 for other channels out than in.
        kernels: Heights of the kernels, which are square; odd ones are padded to keep the image's size at stride 1.
        strides: Steps between the places of the kernel.
        batches: Numbers of images.
        passes: forward, dX, dW (the gradients of input and weight), step (all of them, and AdamW).
    """

    def groups() -> "list[Group]":
        from cutwork.bench.conv import CONV_FORMS, layers

        few = settings.few
        found = layers(shapes=few(shapes), kernels=few(kernels), strides=few(strides), batches=few(batches))
        return _groups_of(found, CONV_FORMS, settings, grid, passes)

    _measure(settings, groups)


def model(settings: Settings, grid: Grid = OF_MODELS, models: Models = TO_RUN) -> None:
    """Measure whole models, forward: compressed layers against dense ones."""
    _measure(settings, lambda: _groups_of_models(models, settings, grid, "forward"))


def train(settings: Settings, grid: Grid = OF_MODELS, models: Models = TO_TRAIN) -> None:
    """Measure whole training steps: forward, backward and AdamW, of layers, blocks and models, and moves of masks."""
    from cutwork.bench.models import cost_of_moves

    _measure(settings, lambda: _groups_of_models(models, settings, grid, "step"), summary=cost_of_moves)


def chance(settings: Settings, *, count: int = 200) -> None:
    """Measure layers of random shapes, masks and inputs as `pack` leaves them: is one ever slower than dense?

    Args:
        count: How many layers.
    """
    from cutwork.bench import chance as measured

    if not 1 <= count <= MOST_LAYERS:
        raise ValueError(f"count {count}; give 1 to {MOST_LAYERS}")
    _measure(settings, lambda: settings.few(measured.groups(count, settings.seed)), summary=measured.summary)


BENCHMARKS = CommandGroup(
    "Measure sparse layers and models beside dense ones.",
    {"linear": linear, "conv": conv, "model": model, "train": train, "chance": chance},
)


def _groups_of(
    layers: "Sequence[Layer]", table: "PassTable", settings: Settings, grid: Grid, passes: Sequence[str]
) -> "list[Group]":
    from cutwork.bench.choices import choose
    from cutwork.bench.layers import groups
    from cutwork.bench.passes import PASSES, TILE

    work = choose("pass", passes, PASSES)
    return groups(layers, table, grid.choose(settings, work, precisions=list(table[TILE]), forms=list(table)))


def _groups_of_models(models: Models, settings: Settings, grid: Grid, work: str) -> "list[Group]":
    from cutwork.bench.models import MODEL_FORMS, groups
    from cutwork.bench.passes import DTYPES

    few = settings.few
    choices = grid.choose(settings, [work], precisions=list(DTYPES), forms=MODEL_FORMS[work])
    return groups(names=few(models.names), layers=few(models.layers), batches=few(models.batches), choices=choices)


def _measure(
    settings: Settings,
    groups: Callable[[], "Sequence[Group]"],
    summary: "Callable[[Sequence[Measurement]], str] | None" = None,
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
    with use_threads(settings.threads):
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
        if summary is not None and (said := summary(run.rows)):
            run.notes[said] = None
        results = run.results("cutwork " + shlex.join(sys.argv[1:]))
    _keep(results, settings.output)
    if stopped is not None:
        raise stopped
    if not results.all_are_equal:
        raise SystemExit(1)


def _measure_all(groups: "Sequence[Group]", run: "Run", seconds: float) -> None:
    """Measure groups one after the other until the time is up; what one does not need is left to the rest."""
    end = perf_counter() + seconds
    with show_progress(len(groups), seconds) as show:
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
