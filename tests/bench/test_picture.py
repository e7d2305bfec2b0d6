import sys
from dataclasses import replace

import pytest

from cutwork.bench.picture import IDEAL, OTHERS, curves, draw, points
from cutwork.bench.results import Measurement, Results
from cutwork.speed.machine import Machine

MACHINE = Machine("a CPU", 2, 1, "avx512", "2.13.0", "0.1.0", "2026-01-01T00:00:00+00:00", "a command")

ROW = Measurement(
    "linear", "768->3072", 197, "forward", "block:16", 0.1, "tile", "fp32", equal=True, error=0.0, ratio=9.0
)
ROWS = [
    replace(
        ROW, form=form, pattern=pattern, density=density, ratio=speed / density, ideal=1 / density, precision=precision
    )
    for precision in ("fp32", "bf16")
    for form, speed in (("tile", 0.9), ("bsr-left", 0.1), ("csr", 0.01))
    for pattern in ("block:16", "vector:16")
    for density in (0.5, 0.2, 0.1, 0.05)
]


CHANCE = [
    replace(ROW, what="random", density=density, form=form, ratio=ratio)
    for form, density, ratio in (("packed: tiles", 0.1, 4.0), ("packed: dense", 0.9, 0.95), ("packed: tiles", 0.5, 1.5))
]


def results_of(rows):
    return Results(MACHINE, tuple(rows))


def test_own_forms_have_a_line_for_each_pattern_and_others_one():
    panels = curves(ROWS)
    assert list(panels) == [
        "linear 768->3072, forward, tokens 197, fp32",
        "linear 768->3072, forward, tokens 197, bf16",
    ]
    for lines in panels.values():
        assert list(lines) == ["tile block:16", "tile vector:16", "bsr-left", "csr", IDEAL]
        assert lines["tile block:16"] == [(0.05, 18.0), (0.1, 9.0), (0.2, 4.5), (0.5, 1.8)]
        assert lines[IDEAL] == [(0.05, 20.0), (0.1, 10.0), (0.2, 5.0), (0.5, 2.0)]


def test_what_differs_or_has_a_single_density_is_no_curve():
    assert not curves([ROW, replace(ROW, density=0.5, ratio=None, equal=False)])


@pytest.mark.parametrize("name", ["picture.svg", "picture.png"])
def test_a_picture_is_written_and_not_empty(name, tmp_path):
    (file,) = draw(results_of(ROWS), tmp_path / name)
    assert file.stat().st_size > 5000


def test_the_same_numbers_give_the_same_svg(tmp_path):
    first, second = (draw(results_of(ROWS), tmp_path / name)[0].read_text() for name in ("a.svg", "b.svg"))
    assert first == second
    assert "linear 768-&gt;3072, forward, tokens 197, bf16" in first


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw(results_of(ROWS), tmp_path / "picture.svg") == []


@pytest.mark.parametrize("rows", [[], [replace(ROW, form="dense", density=1.0, ratio=1.0)]])
def test_rows_without_curves_have_no_picture(rows, tmp_path):
    assert draw(results_of(rows), tmp_path / "picture.svg") == []


def test_random_layers_are_points_by_form_and_no_curves(tmp_path):
    assert not curves(CHANCE)
    assert points(CHANCE) == {"packed: dense": [(0.9, 0.95)], "packed: tiles": [(0.1, 4.0), (0.5, 1.5)]}
    (file,) = draw(results_of(CHANCE), tmp_path / "picture.svg")
    text = file.read_text()
    assert all(part in text for part in ("3 random layers", "packed: tiles", "0.97x", ">0.7x<"))


def test_a_picture_names_machine_threads_and_forms_and_has_ticks_below_dense(tmp_path):
    slow = [replace(row, ratio=row.ratio / 3) for row in ROWS]
    text = draw(results_of(slow), tmp_path / "picture.svg")[0].read_text()
    assert all(part in text for part in ("a CPU, 1 thread, avx512, torch 2.13.0", "tile block:16", ">0.5x<", ">0.2x<"))


def test_packed_and_fused_models_are_lines_of_their_own():
    rows = [replace(row, form=form) for form in ("packed", "fused") for row in ROWS if row.form == "tile"]
    assert {"packed block:16", "fused block:16"} <= set(curves(rows)["linear 768->3072, forward, tokens 197, fp32"])


def test_other_formats_look_different_from_each_other():
    assert len({(look["color"], look["dashes"]) for look in OTHERS.values()}) == len(OTHERS)
