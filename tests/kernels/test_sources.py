"""The C++ sources: each file includes what it uses, so that editors and readers can open it alone."""

import os
import platform
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nanobind
import pytest

NATIVE = Path(__file__).parents[2] / "src/cutwork/kernels/cpu/native"
SOURCES = sorted(path for path in NATIVE.rglob("*") if path.suffix in (".h", ".cpp"))
PYTHON = Path(sysconfig.get_path("include"))
BOUND = {NATIVE / "bindings.cpp", NATIVE / "probe.cpp"}
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
FLAGS = ["-std=c++17", "-fsyntax-only", "-fopenmp", f"-isystem{nanobind.include_dir()}", f"-isystem{PYTHON}"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]
OTHER_SETS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": AVX512,
    "avx512vpopcntdq": [*AVX512, "-mavx512vpopcntdq"],
    "avx512vnni": [*AVX512, "-mavx512vnni"],
    "avx512bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
}

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler; install g++ or clang++, or name one in CXX")


def complaints(sources, options=()):
    """Compile each alone, and return what the compiler says of those that it refuses."""

    def compile_one(source):
        # Included from an empty file, since compilers warn of headers that are compiled themselves.
        command = [COMPILER, *FLAGS, *options, "-include", str(source), "-x", "c++", os.devnull]
        return subprocess.run(command, capture_output=True, text=True)

    with ThreadPoolExecutor(2) as pool:
        runs = zip(sources, pool.map(compile_one, sources), strict=True)
        return {source.name: done.stderr for source, done in runs if done.returncode}


@pytest.mark.exhaustive
def test_each_file_compiles_alone():
    assert len(SOURCES) > 20
    assert complaints([source for source in SOURCES if source not in BOUND]) == {}


@pytest.mark.exhaustive
def test_each_file_for_python_compiles_alone():
    if not (PYTHON / "Python.h").exists():
        pytest.skip(f"no Python.h in {PYTHON}; install the headers of this Python")
    assert complaints(sorted(BOUND)) == {}


@pytest.mark.exhaustive
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86")
@pytest.mark.parametrize("name", OTHER_SETS)
def test_each_file_of_kernels_compiles_alone_for_every_instruction_set(name):
    kernels = [source for source in SOURCES if "CUTWORK_ISA" in source.read_text()]
    assert len(kernels) > 10
    assert complaints(kernels, [*OTHER_SETS[name], f"-DCUTWORK_ISA={name}"]) == {}


def test_a_file_that_lacks_an_include_is_found(tmp_path):
    whole, broken = tmp_path / "whole.h", tmp_path / "broken.h"
    whole.write_text("#include <vector>\nstd::vector<int> numbers();\n")
    broken.write_text("std::vector<int> numbers();\n")
    found = complaints([whole, broken])
    assert list(found) == ["broken.h"] and "vector" in found["broken.h"]
