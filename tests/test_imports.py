"""What importing cutwork costs, and that every public name is found."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import cutwork

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


def test_type_checkers_see_the_same_public_names():
    tree = ast.parse(Path(cutwork.__file__).read_text())
    checked = {
        (node.module, alias.asname)
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == {(file, name) for file, names in cutwork.PUBLIC.items() for name in names}


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in cutwork.PUBLIC.items() for name in names])
def test_a_public_name_is_what_its_file_holds(file, name):
    assert getattr(cutwork, name) is getattr(importlib.import_module(file), name)


@pytest.mark.parametrize(
    "first", ["import cutwork.sparsify", "from cutwork.sparsify import bake", "from cutwork import sparsify"]
)
def test_a_function_stays_a_function_when_the_file_of_its_name_is_imported(first):
    modules_after(f"{first}\nimport cutwork\nassert callable(cutwork.sparsify)")


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'load_digit'; public names: .*load_digits"):
        _ = cutwork.load_digit
