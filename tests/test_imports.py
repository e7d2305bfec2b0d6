"""What importing cutwork costs, and that every public name is found."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import cutwork

STUB = Path(cutwork.__file__).with_suffix(".pyi").read_text()
EXTRAS = ("tyro", "rich", "torchvision", "timm", "matplotlib", "tensorboard", "transformers", "huggingface_hub", "onnx")


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_cutwork_does_not_import_torch():
    assert "torch" not in modules_after("import cutwork")


def test_using_every_public_name_imports_no_extra():
    loaded = modules_after("import cutwork\nfor name in dir(cutwork): getattr(cutwork, name)")
    assert "torch" in loaded
    assert not loaded & set(EXTRAS)


def test_type_checkers_see_each_public_name_once():
    tree = ast.parse(STUB)
    assert all(isinstance(line, ast.ImportFrom) and len(line.names) == 1 for line in tree.body)
    names = [(alias.name, alias.asname) for line in tree.body for alias in line.names]
    # Only a name imported "as itself" is public to them.
    assert all(name == public for name, public in names)
    assert sorted({*names}) == sorted(names)


@pytest.mark.parametrize("line", STUB.splitlines())
def test_a_public_name_is_what_its_file_holds(line):
    _, file, _, name, *_ = line.split()
    assert getattr(cutwork, name) is getattr(importlib.import_module(file), name)


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'load_digit'; public names: .*load_digits"):
        _ = cutwork.load_digit
