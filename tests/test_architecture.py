"""Laws about the source text: which file may import which, and no call whose result is thrown away."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import cutwork

ROOT = Path(cutwork.__file__).parent
FILES = [ROOT / "__init__.py", *sorted({*ROOT.rglob("*.py")} - {ROOT / "__init__.py"})]

# Imports point to a lower floor, or stay inside one room. A new file or folder of src/cutwork gets a floor here.
FLOORS = [
    {"version", "text", "memory", "distributed", "evaluation"},
    {"ops", "models"},
    {"patterns", "kernels", "data"},
    {"sparsity"},
    {"layers", "methods", "registration"},
    {"training", "costs"},
    {"files", "speed", "compat", "transforms"},
    {"bench"},
    {"lab"},
    {"cli"},
    {"__main__"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}

# More files directly in src/cutwork would be a heap again.
MOST_FILES = 10

# They return a new tensor, so a statement that only calls one of them does nothing. Left out on purpose: names that
# also belong to lists, sets or modules, such as sort, add, to, float and cuda.
PURE_FUNCTIONS = {"torch.where", "torch.clamp", "torch.cat", "torch.stack", "torch.zeros_like", "torch.ones_like"}
PURE_METHODS = {
    "clamp",
    "clone",
    "contiguous",
    "detach",
    "flatten",
    "index_add",
    "masked_fill",
    "permute",
    "reshape",
    "scatter",
    "transpose",
    "unsqueeze",
    "view",
}


def part_of(file: Path) -> str:
    """Return the file or folder directly in src/cutwork that `file` belongs to."""
    relative = file.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_names(file: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything of cutwork that `tree` imports."""
    package = ["cutwork", *file.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name == "cutwork" or name.startswith("cutwork."))


def imported_parts(file: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the part of cutwork for every import in `tree`."""
    for line, name in imported_names(file, tree):
        yield line, name.removeprefix("cutwork").removeprefix(".").split(".")[0] or "the package itself"


def broken_imports(file: Path, tree: ast.Module) -> list[str]:
    here = part_of(file)
    broken = []
    for line, there in imported_parts(file, tree):
        place = f"{file.relative_to(ROOT)}:{line}"
        if there == here:
            continue
        if there not in FLOOR_OF:
            broken.append(f"{place} imports {there!r}, which has no floor: import a name from the file that holds it")
        elif FLOOR_OF[there] >= FLOOR_OF[here]:
            broken.append(f"{place} imports {there} (floor {FLOOR_OF[there]}) from {here} (floor {FLOOR_OF[here]})")
    return broken


def file_of(name: str) -> Path | None:
    """Return the file that a dotted name leads to; what is no file is a name inside of one."""
    *parts, last = name.split(".")[1:]
    folder = ROOT.joinpath(*parts)
    places = folder / f"{last}.py", folder / last / "__init__.py", folder.with_suffix(".py"), folder / "__init__.py"
    return next((place for place in places if place.exists()), None)


def useless_calls(tree: ast.Module) -> list[int]:
    """Return the lines of statements that call a pure torch function and drop what it returns."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
            if isinstance(function, ast.Attribute) and (
                function.attr in PURE_METHODS or ast.unparse(function) in PURE_FUNCTIONS
            ):
                lines.append(node.lineno)
    return lines


# The package's own __init__ names the public names of all floors.
@pytest.mark.parametrize("file", FILES[1:], ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file):
    assert part_of(file) in FLOOR_OF, f"{part_of(file)} has no floor yet; give it one in FLOORS"
    broken = broken_imports(file, ast.parse(file.read_text()))
    assert not broken, "\n".join(broken)


def test_no_files_import_each_other_in_a_circle():
    needed = {
        file: {file_of(name) for _, name in imported_names(file, ast.parse(file.read_text()))} - {file, None}
        for file in FILES[1:]
    }
    assert sum(map(len, needed.values())) > len(FILES)
    TopologicalSorter(needed).prepare()


def test_few_files_lie_outside_of_rooms():
    files = sorted(path.name for path in ROOT.iterdir() if path.suffix in {".py", ".pyi"})
    assert len(files) <= MOST_FILES, f"{len(files)} files lie in src/cutwork: {', '.join(files)}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_pure_call_is_thrown_away(file):
    assert not useless_calls(ast.parse(file.read_text()))


@pytest.mark.parametrize(
    ("file", "source", "num_broken"),
    [
        ("patterns/block.py", "from cutwork.patterns.base import Pattern", 0),
        ("patterns/block.py", "from .base import Pattern", 0),
        ("layers/linear.py", "from cutwork import patterns", 0),
        ("layers/linear.py", "from ..patterns.block import Block", 0),
        ("files/checkpoint.py", "from cutwork.version import __version__", 0),
        ("files/checkpoint.py", "import torch", 0),
        ("patterns/block.py", "from cutwork.layers.linear import SparseLinear", 1),
        ("patterns/block.py", "from ..layers import linear", 1),
        ("patterns/block.py", "import cutwork.methods.scores", 1),
        ("ops/topology.py", "from cutwork.patterns import Block", 1),
        ("layers/linear.py", "from cutwork.methods import RigL", 1),
        ("sparsity/base.py", "from cutwork.layers.linear import SparseLinear", 1),
        ("layers/linear.py", "def late():\n    import cutwork.cli", 1),
        ("kernels/cpu/tiles.py", "from cutwork.patterns import Block", 1),
        ("layers/linear.py", "from cutwork import RigL", 1),
        ("layers/linear.py", "import cutwork", 1),
    ],
)
def test_the_import_law_knows_right_from_wrong(file, source, num_broken):
    assert len(broken_imports(ROOT / file, ast.parse(source))) == num_broken


def test_the_pure_call_law_knows_right_from_wrong():
    source = "torch.where(a, b, c)\nx.contiguous()\ny = x.contiguous()\nx.add_(1)\nnames.add(1)\nmodel.to(device)"
    assert useless_calls(ast.parse(source)) == [1, 2]
