import json
import platform
import subprocess

import pytest
import torch

import cutwork
from cutwork.kernels import cpu
from cutwork.speed import machine


@pytest.fixture
def without_extension(monkeypatch):
    monkeypatch.setattr(cpu, "_load", lambda: (None, "No module named 'cutwork.kernels.cpu._cpu'"))


def test_the_page_names_versions_devices_and_kernels():
    page = str(machine.diagnose())
    for text in (cutwork.__version__, platform.python_version(), torch.__version__, "CPU\n", "GPU\n", "Kernels\n"):
        assert text in page


def test_absent_packages_are_listed_as_absent(monkeypatch):
    monkeypatch.setattr(machine, "OPTIONAL", ("a-package-that-nobody-has",))
    diagnosis = machine.diagnose()
    assert diagnosis.packages["a-package-that-nobody-has"] is None
    assert "a-package-that-nobody-has  not installed" in str(diagnosis)


def test_json_holds_the_same_as_the_fields():
    diagnosis = machine.diagnose()
    data = json.loads(diagnosis.to_json())
    assert data["packages"] == diagnosis.packages
    assert data["cpu"]["name"] == diagnosis.cpu.name
    assert [kernel["name"] for kernel in data["kernels"]] == [kernel.name for kernel in diagnosis.kernels]


def test_dense_kernels_and_those_that_are_built_are_active_and_all_others_say_why():
    kernels = machine.diagnose().kernels
    built = ["cpu-tiles"] if cpu.has_tiles() else []
    assert [kernel.name for kernel in kernels if kernel.active] == ["dense", *built]
    assert all(kernel.reason for kernel in kernels)


def test_without_the_extension_the_page_says_why(without_extension):
    diagnosis = machine.diagnose()
    assert diagnosis.cpu.features is None
    assert "features      unknown: No module named 'cutwork.kernels.cpu._cpu'" in str(diagnosis)
    assert "the C++ extension is not built (No module named 'cutwork.kernels.cpu._cpu')" in str(diagnosis)


def test_a_gpu_is_listed_with_its_size_and_capability(monkeypatch):
    gpu = machine.Accelerator("cuda:0", "Some GPU", "80 GiB, compute capability 9.0, CUDA 13.0")
    monkeypatch.setattr(machine, "_accelerators", lambda: [gpu])
    assert "  cuda:0  Some GPU, 80 GiB, compute capability 9.0, CUDA 13.0" in str(machine.diagnose())


def test_the_devices_are_those_that_torch_sees():
    devices = [gpu.device for gpu in machine.diagnose().accelerators if gpu.device != "mps"]
    assert devices == [f"cuda:{index}" for index in range(torch.cuda.device_count())]


def test_the_page_says_where_timings_are_and_one_thread_is_one(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    page = str(machine.diagnose())
    assert f"which may be deleted to measure anew:\n  {tmp_path / 'cutwork' / 'timings.jsonl'}  (not there yet)" in page
    assert "PyTorch runs 1 thread\n" in page


def test_the_commit_is_that_of_the_sources_not_of_any_repository_around_them(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    foreign = tmp_path / "machine.py"
    foreign.write_text("")
    monkeypatch.setattr(machine, "__file__", str(foreign))
    assert machine._commit() is None


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert machine._commit() is None


def test_this_machine_describes_itself():
    here = machine.Machine.here("a command")
    assert here.cpu and here.cores >= 1 and here.threads >= 1 and here.command == "a command"


def test_timings_of_one_kind_of_gpu_are_not_those_of_another(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Some GPU at {device.index}")
    assert "on cuda Some GPU at 0 |" in machine.identify_machine(torch.device("cuda:0"))
    assert "on cpu |" in machine.identify_machine(torch.device("cpu"))
