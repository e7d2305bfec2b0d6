"""The kernels under the address and undefined-behaviour sanitizers, in memory of exactly the right size."""

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cutwork.kernels import cpu

TESTS = Path(__file__).parent / "cpp"
SOURCES = Path(__file__).parents[2] / "src/cutwork/kernels/cpu"
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
FLAGS = [
    *("-std=c++17", "-O1", "-g", "-fopenmp", "-ffp-contract=fast", "-Wno-psabi"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{SOURCES}"),
]
OPTIONS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"],
}


def can_sanitize(folder):
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }")
    command = [COMPILER, *FLAGS, str(probe), "-o", str(folder / "probe")]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize("kernels", ["tiles"])
def test_sanitizers_find_nothing(kernels, tmp_path):
    if not can_sanitize(tmp_path):
        pytest.skip("this compiler has no sanitizers")
    names = [name for name in OPTIONS if name in cpu.instruction_sets()] if cpu.is_built() else ["generic"]
    wanted = list(OPTIONS) if platform.machine() in ("x86_64", "AMD64") else ["generic"]

    def compile_one(source, options):
        to = tmp_path / f"{source.stem}.o"
        subprocess.run([COMPILER, *FLAGS, *options, "-c", str(source), "-o", str(to)], check=True)
        return str(to)

    jobs = [(SOURCES / f"{kernels}_{name}.cpp", OPTIONS[name]) for name in wanted]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda job: compile_one(*job), [*jobs, (TESTS / f"{kernels}_test.cpp", [])]))
    program = str(tmp_path / "program")
    subprocess.run([COMPILER, *FLAGS, *objects, "-o", program], check=True)
    done = subprocess.run([program, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [f"{name}: 300 problems" for name in names]
