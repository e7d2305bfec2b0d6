"""The command `cutwork`: each subcommand is a function, its arguments are the options.

Nothing here imports torch at the top, so `cutwork --help` answers at once.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

# What a wrong input may raise. Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, TypeError, OSError, ModuleNotFoundError)


def doctor(*, json: bool = False) -> None:
    """Show versions, devices and which kernels are active, with reasons.

    Args:
        json: Print a JSON object instead of text.
    """
    from cutwork.doctor import diagnose

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
        method: How the mask moves during training: static, rigl, set, gradual, granet, srigl, supermask, ste, srste.
        seed: Fixes every random choice.
        output: Folder for both networks, the numbers and a picture of the masks.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from cutwork.demo import run

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 when done, 2 after a wrong input."""
    try:
        _import_tyro().extras.subcommand_cli_from_dict(
            COMMANDS, prog="cutwork", description="Structured sparse training for PyTorch.", args=arguments
        )
    except USER_ERRORS as error:
        print(f"cutwork: {error}", file=sys.stderr)
        return 2
    return 0


def _import_tyro() -> ModuleType:
    try:
        return importlib.import_module("tyro")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the command line needs the package 'tyro'; this Python ({sys.executable}) does not have it; "
            "install it with: pip install 'cutwork[cli]'"
        ) from error
