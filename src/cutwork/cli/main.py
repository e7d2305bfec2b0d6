"""The command `cutwork`. A command is a function whose arguments are the options, and one row of `COMMANDS`.

No file of a command imports torch at its top, so `cutwork --help` answers at once.
"""

import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from types import ModuleType
from typing import Annotated, Any

from cutwork.cli.benchmark import BENCHMARKS
from cutwork.cli.check import check
from cutwork.cli.demo import demo
from cutwork.cli.doctor import doctor
from cutwork.cli.evaluate import evaluate
from cutwork.cli.ls import ls
from cutwork.cli.pack import pack
from cutwork.cli.plan import plan
from cutwork.cli.report import report
from cutwork.cli.screen import STOPPED, UNREAD, USER_ERRORS, CommandGroup
from cutwork.cli.sweep import make_sweep
from cutwork.cli.train import make_train
from cutwork.version import __version__

COMMANDS: dict[str, Callable[..., None] | CommandGroup] = {
    "demo": demo,
    "train": make_train(()),
    "evaluate": evaluate,
    "sweep": make_sweep(()),
    "report": report,
    "plan": plan,
    "pack": pack,
    "check": check,
    "ls": ls,
    "benchmark": BENCHMARKS,
    "doctor": doctor,
}
# Commands whose options begin with values that follow from what else is given.
PREPARED: dict[str, Callable[[Sequence[str]], Callable[..., None]]] = {"train": make_train, "sweep": make_sweep}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    It is 0 when done, 1 when a part of it failed, 2 after a wrong input, 130 when it was stopped, 141 when its output
    has no reader any more.
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
    if not given or (len(given) == 1 and isinstance(COMMANDS.get(given[0]), CommandGroup)):
        # Nothing was asked for: say what there is.
        given = [*given, "--help"]
    tyro = _import_tyro()
    rows = COMMANDS | {name: make(given) for name, make in PREPARED.items() if given[0] == name}
    tyro.extras.subcommand_cli_from_dict(
        {name: _as_command(tyro, row) if isinstance(row, CommandGroup) else row for name, row in rows.items()},
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


def _as_command(tyro: ModuleType, group: CommandGroup) -> Callable[..., None]:
    """Return a command whose only argument is one of several commands; tyro runs that one to build it."""
    choices = [Annotated[Any, tyro.conf.subcommand(name=name, constructor=run)] for name, run in group.commands.items()]

    def command_group(command: Any) -> None:
        pass

    kind: Any = Annotated[reduce(or_, choices), tyro.conf.arg(name="")]  # pyrefly: ignore
    command_group.__annotations__ = {"command": kind, "return": None}
    command_group.__doc__ = group.title
    return command_group


def _import_tyro() -> ModuleType:
    try:
        return importlib.import_module("tyro")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the command line needs the package 'tyro'; this Python ({sys.executable}) does not have it; "
            "install it with: pip install 'cutwork[cli]'"
        ) from error
