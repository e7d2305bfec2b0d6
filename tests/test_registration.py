"""The operators are known to a process that only imports torch and cutwork, and to a program without Python."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.cpp_extension import include_paths, library_paths

import cutwork as cw
from cutwork.kernels.cpu import operator_library
from cutwork.layers.int8 import Int8Linear
from cutwork.ops.dispatch import KERNELS

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
ORDERS = ["import torch, cutwork", "import cutwork, torch"]
OPERATORS = {
    *("block_linear", "block_linear_input_gradient", "block_linear_weight_gradient"),
    *("block_conv2d", "block_conv2d_input_gradient", "block_conv2d_weight_gradient"),
    "int8_linear",
}


def run(code: str, *arguments: object) -> str:
    """Return what a new Python process prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def program() -> tuple[torch.export.ExportedProgram, torch.Tensor, torch.Tensor]:
    """Return an exported model of every kind of layer, an input, and what the model makes of it."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 16), nn.Linear(16, 4)]
    model = nn.Sequential(*layers).eval()
    patterns = {"0": "block:4", "3": "shuffled:4", "4": "block:4"}
    cw.sparsify(model, patterns, density=0.5, storage="compressed")
    model[4] = Int8Linear.of(model[4])
    x = torch.arange(216.0).view(2, 3, 6, 6) / 216
    with torch.no_grad():
        return torch.export.export(model, (x,)), x, model(x)


@pytest.mark.parametrize("order", ORDERS)
def test_an_exported_model_runs_where_nobody_imported_a_layer(order, program, tmp_path):
    exported, x, y = program
    torch.export.save(exported, tmp_path / "model.pt2")
    torch.save((x, y), tmp_path / "tensors.pt")
    run(
        f"{order}\nfrom pathlib import Path\nimport sys\nfolder = Path(sys.argv[1])\n"
        "x, y = torch.load(folder / 'tensors.pt')\n"
        "assert torch.equal(torch.export.load(folder / 'model.pt2').module()(x), y)\n"
        "assert 'cutwork.layers' not in sys.modules",
        tmp_path,
    )


@pytest.fixture(scope="module")
def package(program, tmp_path_factory):
    """Return a folder with the same model compiled ahead of time, its input and its output."""
    if COMPILER is None:
        pytest.skip("compiling ahead of time takes a C++ compiler; install g++, or name one in CXX")
    exported, x, y = program
    folder = tmp_path_factory.mktemp("package")
    torch._inductor.aoti_compile_and_package(exported, package_path=str(folder / "model.pt2"))
    torch.save((x, y), folder / "tensors.pt")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_a_package_compiled_ahead_of_time_runs_where_nobody_imported_a_layer(order, package):
    run(
        f"{order}\nimport sys\nx, y = torch.load(sys.argv[1] + '/tensors.pt')\n"
        "model = torch._inductor.aoti_load_package(sys.argv[1] + '/model.pt2')\n"
        "assert torch.equal(model(x), y)\n"
        "assert 'cutwork.layers' not in sys.modules",
        package,
    )


@pytest.mark.slow
def test_a_package_compiled_ahead_of_time_runs_in_a_program_without_python(package, tmp_path):
    try:
        library = operator_library()
    except ImportError as error:
        pytest.skip(str(error))
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10):
        pytest.skip("operators without Python take text since PyTorch 2.10")
    source, to = Path(__file__).parent / "kernels/cpp/package.cpp", tmp_path / "program"
    folders = [f"-I{path}" for path in include_paths()]
    folders += [option for path in library_paths() for option in (f"-L{path}", f"-Wl,-rpath,{path}")]
    libraries = ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    subprocess.run([COMPILER, "-std=c++20", str(source), *folders, *libraries, "-o", str(to)], check=True)
    done = subprocess.run([to, library, package / "model.pt2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, y = torch.load(package / "tensors.pt")
    assert torch.equal(torch.tensor([float(line) for line in done.stdout.split()]), y.flatten())


# The files that registration itself imports, as the first to import torch, and a file above them.
@pytest.mark.parametrize("first", ["cutwork.ops.block_conv2d", "cutwork.kernels.cpu.conv", "cutwork.sparsity.layout"])
def test_whichever_file_imports_torch_the_operators_are_registered(first):
    code = (
        "from torch import ops\nprint(*dir(ops.cutwork))\nfrom cutwork.ops.dispatch import KERNELS\nprint(len(KERNELS))"
    )
    known, kernels = run(f"import {first}\n{code}").splitlines()
    assert set(known.split()) >= OPERATORS
    assert int(kernels) == len(KERNELS)


def test_asking_whether_torch_is_installed_keeps_the_watch_and_importing_it_ends_it():
    code = (
        "import sys\nfrom importlib.util import find_spec\nbefore = list(sys.meta_path)\nimport cutwork\n"
        "assert find_spec('torch').origin.endswith('__init__.py') and len(sys.meta_path) == len(before) + 1\n"
        "import torch\nassert torch.ops.cutwork.block_linear.default\n"
        "assert sys.meta_path == before\n"
        "assert torch.__loader__.exec_module.__func__ is type(torch.__loader__).exec_module"
    )
    run(code)


def test_a_failed_import_of_torch_fails_as_before_and_can_be_tried_again(tmp_path):
    (tmp_path / "torch.py").write_text("import sys\nif len(sys.argv) > 1:\n    raise RuntimeError(sys.argv.pop())")
    code = (
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport cutwork\n"
        "try:\n    import torch\nexcept RuntimeError as error:\n    print(error)\n"
        "sys.path.pop(0)\nsys.path_importer_cache.clear()\nimport torch\nassert torch.ops.cutwork.block_linear.default"
    )
    assert run(code, "broken") == "broken\n"


def test_without_torch_it_is_missing_as_before():
    code = (
        "import sys\nimport cutwork\n"
        "sys.path[:] = [path for path in sys.path if 'site-packages' not in path]\nsys.path_importer_cache.clear()\n"
        "try:\n    import torch\nexcept ModuleNotFoundError as error:\n    print(error)"
    )
    assert run(code) == "No module named 'torch'\n"
