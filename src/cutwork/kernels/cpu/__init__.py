"""The compiled extension for CPUs, which may be absent: cutwork then runs on PyTorch alone."""

import functools
import importlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

# First, so that the extension finds torch's copy of the OpenMP library loaded and shares its threads.
import torch

# The instruction set with the most comes first; each with what it needs of the CPU.
INSTRUCTION_SETS: dict[str, frozenset[str]] = {
    "avx512": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "fma"}),
    "avx2": frozenset({"avx2", "fma"}),
    "generic": frozenset(),
}
# Those of the kernels for bfloat16 and int8.
NARROW_INSTRUCTION_SETS: dict[str, frozenset[str]] = {
    "avx512bf16": INSTRUCTION_SETS["avx512"] | {"avx512_vnni", "avx512_bf16"},
    "avx512vnni": INSTRUCTION_SETS["avx512"] | {"avx512_vnni"},
    **INSTRUCTION_SETS,
}

_PROCESS = os.getpid()


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("cutwork.kernels.cpu._cpu"), ""
    except ImportError as error:
        return None, str(error)


def is_built() -> bool:
    """Say whether the compiled extension can be loaded."""
    return _load()[0] is not None


def why_missing() -> str:
    """Return the loader's own words about why the extension is absent, or an empty string when it is there."""
    return _load()[1]


def has_tiles() -> bool:
    """Say whether the extension was built with the tile kernels."""
    return is_built() and "Tiles" in vars(extension())


@functools.cache
def processor() -> str:
    """Return the name of the processor, as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def instruction_sets(known: Mapping[str, frozenset[str]] = INSTRUCTION_SETS) -> list[str]:
    """Return the instruction sets, by default the tile kernels', that this CPU can run, the one that is used first."""
    features = set(extension().features())
    return [name for name, needed in known.items() if needed <= features]


def num_threads() -> int:
    """Return how many threads a kernel may use: as many as PyTorch does, but one in a process made by fork.

    The threads of an OpenMP library do not come along in a fork, and GNU's waits for them forever.
    """
    return torch.get_num_threads() if os.getpid() == _PROCESS else 1


def extension() -> ModuleType:
    """Return the compiled extension, which offers `features()` and `threads(wanted)`.

    Raises ImportError when it was not built.
    """
    module, reason = _load()
    if module is None:
        raise ImportError(
            f"the C++ extension of cutwork cannot be loaded: {reason}; "
            "install a C++17 compiler and reinstall cutwork, or leave it: everything also runs without it"
        )
    return module


def operator_library() -> Path:
    """Return the file of the library that defines the operators for inference in programs without Python.

    Raises ImportError when it was not built.
    """
    library = Path(str(extension().__file__)).with_name("libcutwork_operators.so")
    if not library.exists():
        raise ImportError(
            f"the library of operators for programs without Python is not at {library}; it is built on Linux, with "
            "GCC or Clang: reinstall cutwork there"
        )
    return library
