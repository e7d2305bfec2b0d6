"""The compiled extension for CPUs, which may be absent: cutwork then runs on PyTorch alone."""

import functools
import importlib
import os
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

# First, so that the extension finds torch's copy of the OpenMP library loaded and shares its threads.
import torch

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


def why_not_load() -> str:
    """Say, in the loader's own words, why the extension cannot be loaded; empty where it can."""
    return _load()[1]


def has_tiles() -> bool:
    """Say whether the extension was built with the tile kernels."""
    return is_built() and "instruction_sets" in vars(extension())


@functools.cache
def processor() -> str:
    """Return the name of the processor, as the operating system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Return the instruction sets of the float32 kernels that this CPU can run, the one that is used first."""
    return [found.name for found in extension().instruction_sets() if found.linear]


def narrow_instruction_sets() -> list[str]:
    """Return those of the bfloat16 and int8 kernels."""
    return [found.name for found in extension().instruction_sets() if found.narrow]


def grouping_instruction_sets() -> list[str]:
    """Return those of the grouping of rows."""
    return [found.name for found in extension().instruction_sets() if found.grouping]


@functools.cache
def linear_kernels(instruction_set: str) -> Any:
    """Return the linear kernels for float32, in an instruction set."""
    return _kernels(instruction_set).linear


@functools.cache
def conv_kernels(instruction_set: str) -> Any:
    """Return the convolutions for float32, in an instruction set."""
    return _kernels(instruction_set).conv


@functools.cache
def narrow_kernels(instruction_set: str) -> Any:
    """Return the linear kernels for bfloat16 and int8, in an instruction set."""
    return _kernels(instruction_set).narrow


@functools.cache
def grouping_kernels(instruction_set: str) -> Any:
    """Return the grouping of rows, in an instruction set."""
    return _kernels(instruction_set).grouping


@functools.cache
def selection_kernels(instruction_set: str) -> Any:
    """Return what decides what is kept, in an instruction set."""
    return _kernels(instruction_set).selection


@functools.cache
def norm_kernels(instruction_set: str) -> Any:
    """Return the batch norms in training, in an instruction set."""
    return _kernels(instruction_set).norm


def _kernels(instruction_set: str) -> Any:
    return next(found for found in extension().instruction_sets() if found.name == instruction_set)


def num_threads() -> int:
    """Return how many threads a kernel may use: as many as PyTorch does, but one in a process made by fork.

    The threads of an OpenMP library do not come along in a fork, and GNU's waits for them forever.
    """
    return torch.get_num_threads() if os.getpid() == _PROCESS else 1


def extension() -> ModuleType:
    """Return the compiled extension, which says what the CPU can run, and has the kernels if GCC or Clang built it.

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
