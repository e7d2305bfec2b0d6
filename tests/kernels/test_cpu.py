"""The compiled extension: what it reports is checked against the operating system and against torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cutwork.kernels import DEVICES, cpu

COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
WHY_REFERENCE = DEVICES["cpu"].survey()[0].reason
needs_extension = pytest.mark.skipif(not cpu.is_built(), reason=WHY_REFERENCE)
CPUINFO = Path("/proc/cpuinfo")
KNOWN_TO_PROBE = {
    *("avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    "avx512_vpopcntdq",
    *("amx_tile", "amx_int8", "amx_bf16"),
}


def cpuinfo_flags() -> set[str]:
    for line in CPUINFO.read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here, and cutwork runs in plain PyTorch without one")
def test_where_there_is_a_compiler_the_kernels_are_built():
    # Otherwise a compile error would only make the tests of the kernels skip.
    assert cpu.has_tiles(), f"{WHY_REFERENCE}; the compiler says why in: pip install -v -c constraints.txt -e ."
    if sys.platform == "linux":
        assert cpu.operator_library().exists()


@needs_extension
@pytest.mark.skipif(not CPUINFO.exists() or not cpuinfo_flags(), reason="only Linux on x86 lists flags")
def test_features_are_those_that_linux_lists():
    assert set(cpu.extension().features()) == KNOWN_TO_PROBE & cpuinfo_flags()


@needs_extension
def test_threads_gives_as_many_as_asked_for_or_one():
    given = [cpu.extension().threads(wanted) for wanted in (1, 2, 3)]
    assert given in ([1, 2, 3], [1, 1, 1])


@needs_extension
@pytest.mark.parametrize("wanted", [0, -1])
def test_threads_refuses_less_than_one(wanted):
    with pytest.raises(ValueError, match=f"got {wanted}; give a number of at least 1"):
        cpu.extension().threads(wanted)


@pytest.mark.skipif(not cpu.has_tiles(), reason=WHY_REFERENCE)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the threads of a process, in /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_small_product_wakes_no_other_threads(dtype):
    code = f"""
import os, torch
from cutwork.ops.block_linear import block_linear
from cutwork.ops.int8_linear import int8_linear, quantize

def run(side):
    ptr, col = torch.tensor([0, 1], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    x, values = torch.ones(side, side), torch.ones(1, side, side)
    if "{dtype}" == "int8":
        int8_linear(x, *quantize(values, ptr, col, None, side), ptr, col, None, None, side, side, "none")
    else:
        x, values = (a.to(torch.{dtype}).requires_grad_() for a in (x, values))
        block_linear(x, values, ptr, col, None, None, None, side, "none", "none").sum().backward()
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(1)
run(8)
torch.set_num_threads(3)
before = len(os.listdir("/proc/self/task"))
assert run(8) == before
assert run(64) > before
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_extension
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the libraries of a process, in /proc")
@pytest.mark.parametrize("order", ["import torch", "import cutwork.kernels.cpu"])
def test_extension_and_torch_share_one_openmp_library(order):
    code = (
        f"{order}\nimport torch\nfrom cutwork.kernels import cpu\ncpu.extension().threads(2)\n"
        "paths = {line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}\n"
        "assert len(paths) <= 1, paths"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def hidden_extension(monkeypatch):
    """Make the extension look as if it had not been built."""
    monkeypatch.setitem(sys.modules, "cutwork.kernels.cpu._cpu", None)
    cpu._load.cache_clear()
    yield
    cpu._load.cache_clear()


def test_without_the_extension_the_reason_is_told(hidden_extension):
    assert not cpu.is_built()
    assert "cutwork.kernels.cpu._cpu" in cpu.why_not_load()
    with pytest.raises(ImportError, match="install a C\\+\\+17 compiler and reinstall cutwork, or leave it"):
        cpu.extension()
