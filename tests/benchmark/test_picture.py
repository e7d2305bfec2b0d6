import sys
from dataclasses import replace

import pytest

from cutwork.benchmark.picture import IDEAL, curves, draw
from cutwork.benchmark.results import Row

ROW = Row("linear", "768x3072", 197, "forward", "block:16", 0.1, "tile", "fp32", equal=True, error=0.0, ratio=9.0)
ROWS = [
    replace(
        ROW, form=form, pattern=pattern, density=density, ratio=speed / density, ideal=1 / density, precision=precision
    )
    for precision in ("fp32", "bf16")
    for form, speed in (("tile", 0.9), ("bsr-left", 0.1), ("csr", 0.01))
    for pattern in ("block:16", "vector:16")
    for density in (0.5, 0.1)
]


def test_own_forms_have_a_line_for_each_pattern_and_others_one():
    panels = curves(ROWS)
    assert list(panels) == [
        "linear 768x3072, forward, tokens 197, fp32",
        "linear 768x3072, forward, tokens 197, bf16",
    ]
    for lines in panels.values():
        assert list(lines) == ["block:16", "vector:16", "bsr-left", "csr", IDEAL]
        assert lines["block:16"] == [(0.1, 9.0), (0.5, 1.8)]
        assert lines[IDEAL] == [(0.1, 10.0), (0.5, 2.0)]


def test_what_differs_or_has_a_single_density_is_no_curve():
    assert not curves([ROW, replace(ROW, density=0.5, ratio=None, equal=False)])


@pytest.mark.parametrize("name", ["picture.svg", "picture.png"])
def test_a_picture_is_written_and_not_empty(name, tmp_path):
    (file,) = draw(ROWS, tmp_path / name)
    assert file.stat().st_size > 5000


def test_the_same_numbers_give_the_same_svg(tmp_path):
    first, second = (draw(ROWS, tmp_path / name)[0].read_text() for name in ("a.svg", "b.svg"))
    assert first == second
    assert "linear 768x3072, forward, tokens 197, bf16" in first


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw(ROWS, tmp_path / "picture.svg") == []


@pytest.mark.parametrize("rows", [[], [replace(ROW, form="dense", density=1.0, ratio=1.0)]])
def test_rows_without_curves_have_no_picture(rows, tmp_path):
    assert draw(rows, tmp_path / "picture.svg") == []
