"""The command `cutwork`: each subcommand is a function, its arguments are the options.

Nothing here imports torch at the top, so `cutwork --help` answers at once.
"""

import importlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from cutwork.cli.benchmark import COMMANDS as BENCHMARKS
from cutwork.cli.benchmark import STOPPED
from cutwork.version import __version__

# What a wrong input may raise. Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, TypeError, OSError, ModuleNotFoundError)
# What a shell expects of a program whose reader went away, as `head` does.
UNREAD = 141


def doctor(*, json: bool = False) -> None:
    """Show versions, devices and which kernels are active, with reasons.

    Args:
        json: Print a JSON object instead of text.
    """
    from cutwork.speed.machine import diagnose

    diagnosis = diagnose()
    print(diagnosis.to_json() if json else diagnosis)


def demo(
    *,
    epochs: int = 30,
    density: float | None = None,
    pattern: str = "block:16",
    method: str = "rigl",
    seed: int = 0,
    output: Path = Path("demo-output"),
) -> None:
    """Train a small network on handwritten digits, dense and sparse side by side, and compare the two.

    Args:
        epochs: How often each network sees the training images.
        density: Share of the weights that is kept, above 0 and up to 1; without it the pattern's own, or else 0.1.
        pattern: Which masks are legal: unstructured, block:16, vector:16, shuffled:16, 2:4 and others.
        method: How the mask moves during training: static, rigl, set, gradual, granet, srigl, dsb, ssb, supermask,
            ste, srste.
        seed: Fixes every random choice.
        output: Folder for both networks, the numbers and a picture of the masks.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cutwork.lab.demo import run

    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    task = bar.add_task("")

    def show(done: int, total: int, losses: str) -> None:
        bar.start()
        bar.update(task, completed=done, total=total, description=losses)

    try:
        result = run(
            epochs=epochs, density=density, pattern=pattern, method=method, seed=seed, output=output, progress=show
        )
    finally:
        # Stopping a bar that has not started prints an empty line.
        if bar.live.is_started:
            bar.stop()
    print(result)
    if not result.reload_is_equal:
        raise SystemExit(1)


COMMANDS = {"doctor": doctor, "demo": demo}
# Subcommands of a subcommand, with what is said about them together.
GROUPS = {"benchmark": (BENCHMARKS, "Measure sparse layers and models beside dense ones.")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    It is 0 when done, 2 after a wrong input, 130 when somebody stopped it, 141 when nobody reads on.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    _prepare_streams()
    try:
        try:
            _run(given)
        finally:
            # What is still on its way may fail too, and the interpreter would say so in a way of its own.
            _flush()
    except BrokenPipeError:
        return UNREAD
    except USER_ERRORS as error:
        print(f"cutwork: {_in_one_line(error)}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        print(f"cutwork: out of memory: {_in_one_line(error)}; choose smaller sizes", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cutwork: stopped", file=sys.stderr)
        return STOPPED
    return 0


def _run(given: list[str]) -> None:
    if given == ["--version"]:
        print(f"cutwork {__version__}")
        return
    if not given or given in [[name] for name in GROUPS]:
        # Nothing was asked for: say what there is.
        given = [*given, "--help"]
    tyro = _import_tyro()
    groups = {name: _group(tyro, commands, title) for name, (commands, title) in GROUPS.items()}
    tyro.extras.subcommand_cli_from_dict(
        COMMANDS | groups,
        prog="cutwork",
        description="Structured sparse training for PyTorch. 'cutwork --version' says which version this is.",
        args=given,
        # Options are called by their own names alone, wherever they are defined.
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )


def _prepare_streams() -> None:
    """Let letters that a terminal lacks, and names of files that are no text, be written in another way."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _flush() -> None:
    # A program may be started without standard output.
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        # The interpreter flushes once more when it ends: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _group(tyro: ModuleType, commands: Mapping[str, Callable[..., None]], title: str) -> Callable[..., None]:
    """Return a command whose only argument is one of several commands; tyro runs that one to build it."""
    choices = [Annotated[Any, tyro.conf.subcommand(name=name, constructor=run)] for name, run in commands.items()]

    def group(command: Any) -> None:
        pass

    kind: Any = Annotated[reduce(or_, choices), tyro.conf.arg(name="")]  # pyrefly: ignore
    group.__annotations__ = {"command": kind, "return": None}
    group.__doc__ = title
    return group


def _import_tyro() -> ModuleType:
    try:
        return importlib.import_module("tyro")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the command line needs the package 'tyro'; this Python ({sys.executable}) does not have it; "
            "install it with: pip install 'cutwork[cli]'"
        ) from error
