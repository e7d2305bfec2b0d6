"""cutwork: structured sparse training and inference for PyTorch."""

import importlib
from pathlib import Path

from cutwork.registration import register_operators

# The public names and the files that hold them, in the one list that type checkers and editors read too.
_LINES = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8").splitlines()
_FILE_OF = {name: file for _, file, _, name, *_ in map(str.split, _LINES)}


# They load at first use, so `cutwork --help` does not wait for torch.
def __getattr__(name):
    if name not in _FILE_OF:
        raise AttributeError(f"module 'cutwork' has no attribute {name!r}; public names: {', '.join(_FILE_OF)}")
    file = _FILE_OF[name]
    # A room is public as a whole.
    value = (
        importlib.import_module(f"cutwork.{name}")
        if file == "cutwork"
        else getattr(importlib.import_module(file), name)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_FILE_OF})


register_operators()
