"""The C++ sources: each file includes what it uses, so that editors and readers can open it alone."""

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import nanobind
import pytest

NATIVE = Path(__file__).parents[2] / "src/cutwork/kernels/cpu/native"
SOURCES = sorted(path.relative_to(NATIVE) for path in NATIVE.rglob("*") if path.suffix in (".h", ".cpp"))
PYTHON = Path(sysconfig.get_path("include"))
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
FLAGS = ["-std=c++17", "-fsyntax-only", "-fopenmp", f"-isystem{nanobind.include_dir()}", f"-isystem{PYTHON}"]


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler; install g++ or clang++, or name one in CXX")
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_each_file_compiles_alone(source):
    if source.name in ("bindings.cpp", "probe.cpp") and not (PYTHON / "Python.h").exists():
        pytest.skip(f"no Python.h in {PYTHON}; install the headers of this Python")
    # Included from an empty file, since compilers warn of headers that are compiled themselves.
    command = [COMPILER, *FLAGS, "-include", str(NATIVE / source), "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_there_are_sources():
    assert len(SOURCES) > 20
