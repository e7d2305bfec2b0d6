"""Of which grids `make test` runs what: a small folder of tests with this conftest.py and these settings."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

HERE = Path(__file__).parent
TESTS = """
import pytest

@pytest.mark.grid
@pytest.mark.parametrize("size", range(3))
@pytest.mark.parametrize(("kind", "of"), [("a", "b"), ("c", "d")])
@pytest.mark.parametrize("name", ["some", "other", "more-or", "less"])
def test_grid(size, kind, of, name):
    pass

@pytest.mark.grid
@pytest.mark.parametrize(("row", "column"), [(row, column) for row in range(3) for column in range(3) if row != column])
def test_pairs(row, column):
    pass

@pytest.mark.grid
def test_of_nothing():
    pass

@pytest.mark.parametrize("size", range(3))
@pytest.mark.parametrize("name", range(3))
def test_without_mark(size, name):
    pass

@pytest.mark.exhaustive
def test_exhaustive():
    pass
"""
DIAGONAL_ONLY = ("-m", "not exhaustive")


@pytest.fixture
def run(pytester):
    """Return the cells of each test that run, as lists of what stands in their brackets."""
    pytester.makeconftest((HERE / "conftest.py").read_text())
    pytester.makepyprojecttoml((HERE.parent / "pyproject.toml").read_text())
    pytester.mkdir("tests").joinpath("test_small.py").write_text(TESTS)
    pytester.mkdir("src")

    def run(*options):
        cells = {}
        for call in pytester.inline_run(*options).getcalls("pytest_runtest_call"):
            name, _, values = call.item.name.partition("[")
            cells.setdefault(name, []).append(values.removesuffix("]"))
        return cells

    return run


def test_all_cells_run_unless_told_otherwise(run):
    assert {name: len(cells) for name, cells in run().items()} == {
        "test_grid": 24,
        "test_pairs": 6,
        "test_of_nothing": 1,
        "test_without_mark": 9,
        "test_exhaustive": 1,
    }


def test_of_a_grid_the_diagonal_is_kept_and_on_it_stands_every_value(run):
    cells = run(*DIAGONAL_ONLY)
    assert sorted(cells["test_grid"]) == ["less-c-d-0", "more-or-a-b-2", "other-c-d-1", "some-a-b-0"]
    # Values that stand in one list are one parameter, whatever combinations they make.
    assert len(cells["test_pairs"]) == 6


def test_what_is_no_grid_is_kept(run):
    cells = run(*DIAGONAL_ONLY)
    assert len(cells["test_without_mark"]) == 9
    assert cells["test_of_nothing"] == [""]
    assert "test_exhaustive" not in cells


@pytest.mark.parametrize("cell", ["some-a-b-0", "other-a-b-0", "more-or-c-d-1", "less-a-b-1"])
def test_a_cell_that_is_named_runs(run, cell):
    assert run(*DIAGONAL_ONLY, f"tests/test_small.py::test_grid[{cell}]") == {"test_grid": [cell]}


def test_cells_that_are_named_keep_every_value_among_them(run):
    named = ["other-a-b-0", "some-c-d-1"]
    cells = run(*DIAGONAL_ONLY, *(f"tests/test_small.py::test_grid[{cell}]" for cell in named))
    assert cells == {"test_grid": named}
