"""The kernels under the address and undefined-behaviour sanitizers, in memory of exactly the right size."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cutwork.kernels import cpu

pytestmark = pytest.mark.exhaustive

TESTS = Path(__file__).parent / "cpp"
NATIVE = Path(__file__).parents[2] / "src/cutwork/kernels/cpu/native"
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
FLAGS = [
    *("-std=c++17", "-O1", "-g", "-fopenmp", "-ffp-contract=fast", "-Wno-psabi"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{NATIVE}"),
]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]
OPTIONS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": AVX512,
    "avx512vpopcntdq": [*AVX512, "-mavx512vpopcntdq"],
    "avx512vnni": [*AVX512, "-mavx512vnni"],
    "avx512bf16": [*AVX512, "-mavx512vnni", "-mavx512bf16"],
}
WIDE = ["generic", "avx2", "avx512"]
KERNELS = {
    "linear": WIDE,
    "conv": WIDE,
    "selection": WIDE,
    "normalisation": WIDE,
    "grouping": [*WIDE, "avx512vpopcntdq"],
    "narrow": [*WIDE, "avx512vnni", "avx512bf16"],
}


def can_sanitize(folder):
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }")
    command = [COMPILER, *FLAGS, str(probe), "-o", str(folder / "probe")]
    return subprocess.run(command, capture_output=True).returncode == 0


def runnable_here():
    return [found.name for found in cpu.extension().instruction_sets()] if cpu.has_tiles() else ["generic"]


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler; install g++ or clang++, or name one in CXX")
@pytest.mark.parametrize("kernels", KERNELS)
def test_sanitizers_find_nothing(kernels, tmp_path):
    if not can_sanitize(tmp_path):
        pytest.skip(
            f"{COMPILER} cannot link the address and undefined-behaviour sanitizers; install libasan and libubsan"
        )
    names = [name for name in KERNELS[kernels] if name in runnable_here()]
    wanted = KERNELS[kernels] if platform.machine() in ("x86_64", "AMD64") else ["generic"]

    def compile_one(source, to, options):
        subprocess.run([COMPILER, *FLAGS, *options, "-c", str(source), "-o", str(tmp_path / to)], check=True)
        return str(tmp_path / to)

    jobs = [(NATIVE / f"{kernels}.cpp", f"{name}.o", [*OPTIONS[name], f"-DCUTWORK_ISA={name}"]) for name in wanted]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda job: compile_one(*job), [*jobs, (TESTS / f"{kernels}_test.cpp", "test.o", [])]))
    program = str(tmp_path / "program")
    subprocess.run([COMPILER, *FLAGS, *objects, "-o", program], check=True)
    done = subprocess.run([program, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{name}: 300 problems" for name in names]
