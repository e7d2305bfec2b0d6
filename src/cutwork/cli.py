"""The command `cutwork`: each subcommand is a function, its arguments are the options.

Nothing here imports torch at the top, so `cutwork --help` answers at once.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

# What a wrong input may raise. Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError)


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
    epochs: int = 10,
    density: float = 0.1,
    pattern: str = "block:4",
    method: str = "rigl",
    seed: int = 0,
    output: Path | None = None,
) -> None:
    """Train a small network on handwritten digits, dense and sparse, and compare the two.

    Args:
        epochs: How often each network sees the training images.
        density: Share of the weights that is kept, above 0 and up to 1.
        pattern: Which masks are legal: unstructured, block:4, shuffled:4, 2:4 and others.
        method: How the mask moves during training.
        seed: Fixes every random choice.
        output: Folder for the results; nothing is written without it.
    """
    from cutwork.demo import run  # pyrefly: ignore[missing-import]

    result = run(epochs=epochs, density=density, pattern=pattern, method=method, seed=seed, output=output)
    if result is not None:
        print(result)


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
