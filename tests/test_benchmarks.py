"""The pages under benchmarks/ and the table of the README are what the measured files say."""

import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cutwork.bench.results import Measurement, Results
from cutwork.cli import main as cli
from cutwork.speed.machine import Machine

ROOT = Path(__file__).parents[1]
MACHINE = Machine("a CPU", 2, 2, "avx512", "2.13.0", "0.1.0", "2026-01-01T00:00:00+00:00", "cutwork benchmark linear")
TILE = Measurement(
    *("linear", "768x3072", 197, "forward", "block:16", 0.1001, "tile", "fp32"),
    equal=True,
    error=0.0,
    median_ms=0.5,
    ratio=9.04,
    ratio_to_fp32=9.5,
)


def load(name, monkeypatch):
    """Import a script of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def render(monkeypatch):
    return load("render", monkeypatch)


def test_the_readme_and_the_results_page_say_what_the_files_say(render):
    measured = render.pieces()
    readme = (ROOT / "README.md").read_text()
    assert render.with_table(readme, render.readme_table(measured)) == readme
    assert render.results_page(measured) == (ROOT / "benchmarks" / "RESULTS.md").read_text()


def test_many_small_comparisons_make_one_table_with_the_least_gain_first(render):
    rows = [
        row
        for number in range(60)
        for row in (
            replace(TILE, shape=f"{number}x8", pattern="dense", form="dense", ratio=1.0),
            replace(TILE, shape=f"{number}x8", ratio=1 + (7 * number) % 60),
        )
    ]
    page = render.results_page({"chance": Results(MACHINE, tuple(rows))})
    lines = [line for line in page.splitlines() if line.startswith("| linear")]
    assert len(lines) == 60
    assert lines[0].startswith(
        "| linear 0x8, forward, tokens 197 | block:16 | 0.1 | tile | fp32 | 500 us | 1.00 | 9.50 |"
    )
    gains = [float(line.split(" | ")[6]) for line in lines]
    assert gains == sorted(gains)


def test_committed_results_are_all_equal(render):
    assert all(results.all_are_equal for results in render.pieces().values())


def test_the_summary_shows_the_range_over_tiles_and_both_comparisons(render):
    rows = (
        TILE,
        replace(TILE, pattern="vector:16", ratio=8.5),
        replace(TILE, density=0.5, ratio=2.04, ratio_to_fp32=2.0),
        replace(TILE, form="csr", ratio=0.5),
        replace(TILE, pattern="block:64", equal=False, ratio=None, ratio_to_fp32=None),
    )
    table = render.summary_table({"linear-197": Results(MACHINE, rows)}).splitlines()
    assert table[:4] == [
        "| weights kept | compared with | 50% | 20% | 10% | 5% |",
        "|---|---|---|---|---|---|",
        "| linear 768x3072, forward, tokens 197 | the fastest dense form | 2.0x |  | 8.5x to 9.0x |  |",
        "| linear 768x3072, forward, tokens 197 | PyTorch, dense fp32 | 2.0x |  | 9.5x |  |",
    ]


def test_the_readme_shows_work_that_people_know_against_the_fastest_dense_form(render):
    titles = {piece: {title for one, title in render.KNOWN if one == piece} for piece, _ in render.KNOWN}
    assert 0 < len(render.KNOWN) <= 8
    for piece, results in render.pieces().items():
        assert titles.get(piece, set()) <= {render.title_of(row) for row in results.rows}
    row = replace(TILE, shape="768->3072", tokens=1576)
    rows = (row, replace(row, ratio=8.5))
    lines = render.readme_table({"linear-1576": Results(MACHINE, rows)}).splitlines()
    assert lines[2] == "| a linear layer 768-3072, 1576 tokens |  | 8.5x to 9.0x |"
    assert "a CPU" in lines[4]


def test_the_results_page_has_machine_command_rows_and_notes(render):
    page = render.results_page({"linear-197": Results(MACHINE, (TILE,), ("a note",))})
    for part in (
        "## linear-197",
        "a CPU, 2 cores",
        "    cutwork benchmark linear\n",
        "| block:16 | 0.1 | tile |",
        "- a note",
    ):
        assert part in page


def test_every_piece_is_a_legal_command(monkeypatch, capsys):
    from cutwork.cli import benchmark as commands

    load("render", monkeypatch)
    pieces = load("run", monkeypatch).PIECES
    titles = {}

    def only_list(settings, groups, summary=None):
        titles[name] = [group.title for group in groups()]

    monkeypatch.setattr(commands, "_measure", only_list)
    for name, options in pieces.items():
        assert cli.main(["benchmark", *options.split()]) == 0, capsys.readouterr().err
        assert titles[name]


def test_an_unknown_piece_is_refused(monkeypatch, capsys):
    load("render", monkeypatch)
    run = load("run", monkeypatch)
    assert run.main(["linear-198"]) == 2
    assert "unknown piece 'linear-198'; write linear-197" in capsys.readouterr().err
    assert run.main(["--list"]) == 0
    assert "linear-197" in capsys.readouterr().out


def test_an_unsteady_dense_form_is_marked_and_explained(render):
    dense = replace(TILE, pattern="dense", density=1.0, form="dense", median_ms=4.0, spread=0.02, ratio=0.9)
    onnx = replace(dense, form="onnx", median_ms=3.6, spread=0.5, ratio=1.0)
    table = render.summary_table({"linear-197": Results(MACHINE, (dense, onnx, TILE))})
    assert "| the fastest dense form |  |  | 9.0x~ |  |" in table
    assert "| PyTorch, dense fp32 |  |  | 9.5x |  |" in table
    assert "`~`: the times of the dense form, or of most tile shapes" in table
    steady = render.summary_table({"linear-197": Results(MACHINE, (dense, replace(onnx, spread=0.05), TILE))})
    assert "~" not in steady


def test_most_tiles_must_be_unsteady_to_mark_a_range_of_them(render):
    dense = replace(TILE, pattern="dense", density=1.0, form="dense", median_ms=4.0, spread=0.02, ratio=1.0)
    tiles = [replace(TILE, pattern=f"block:{size}", ratio=float(size), ratio_to_fp32=float(size)) for size in (4, 8, 9)]
    unsteady = [replace(tile, spread=0.3) for tile in tiles]
    one = render.summary_table({"conv": Results(MACHINE, (dense, *tiles[:2], unsteady[2]))})
    two = render.summary_table({"conv": Results(MACHINE, (dense, tiles[0], *unsteady[1:]))})
    assert "4.0x to 9.0x |" in one
    assert "4.0x to 9.0x~ |" in two


def test_a_ratio_above_one_over_the_density_is_explained_by_the_rates_of_every_dense_form(render):
    dense = replace(TILE, pattern="dense", density=1.0, form="dense", ratio=0.9, gflops_per_s=228.0)
    onnx = replace(dense, form="onnx", ratio=1.0, gflops_per_s=385.0)
    tile = replace(TILE, ratio=12.0, ideal=10.0, gflops_per_s=460.0)
    table = render.summary_table({"linear-197": Results(MACHINE, (dense, onnx, tile))})
    assert "in GF/s: dense 228, onnx 385, tile 460." in table
    below = replace(tile, ratio=9.0)
    assert "GF/s" not in render.summary_table({"linear-197": Results(MACHINE, (dense, onnx, below))})


@pytest.mark.parametrize(("spreads", "told"), [([0.02], 0), ([0.5, 0.02], 1), ([0.5, 0.4, 0.3], 3)])
def test_a_piece_with_an_unsteady_dense_form_is_measured_again(spreads, told, monkeypatch, capsys, tmp_path):
    load("render", monkeypatch)
    run = load("run", monkeypatch)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    left = list(spreads)

    def measured(command, **options):
        dense = replace(TILE, pattern="dense", density=1.0, form="dense", spread=left.pop(0))
        Results(MACHINE, (dense, TILE)).write(tmp_path / command[-1])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(run.subprocess, "run", measured)
    assert run.measure("linear-197")
    assert not left
    err = capsys.readouterr().err
    assert err.count("unsteady: 1 dense times") == told
    assert ("so it stays" in err) == (told == 3)


def test_of_several_tries_the_one_with_the_fewest_unsteady_dense_forms_stands(monkeypatch, tmp_path):
    load("render", monkeypatch)
    run = load("run", monkeypatch)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    dense = replace(TILE, pattern="dense", density=1.0, form="dense", spread=0.0)
    left = [(0.5, 0.5), (0.5, 0.0), (0.4, 0.4)]

    def measured(command, **options):
        rows = [row for spread in left.pop(0) for row in (replace(dense, spread=spread), TILE)]
        Results(MACHINE, tuple(rows)).write(tmp_path / command[-1])
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(run.subprocess, "run", measured)
    assert run.measure("linear-197")
    assert [row.spread for row in run.results_of("linear-197").rows if row.is_base] == [0.5, 0.0]


@pytest.mark.parametrize("start", ["zero", "usual", "age"])
def test_the_steps_after_moves_are_measured_for_every_start(start, monkeypatch):
    after_moves = load("after_moves", monkeypatch)
    for name, value in {"EVERY": 50, "STEPS": 160, "WATCHED": 50}.items():
        monkeypatch.setattr(after_moves, name, value)
    watch = after_moves.train(start, "rigl", 0.1, 0)
    assert len(watch.rises) == 2
    assert watch.fresh > 0 and watch.longest_old > 0 and watch.accuracy > 0.5
    # Scaled by its age a weight steps about as far as under an optimizer that has just begun.
    assert watch.longest_new > 0.5 if start == "age" else watch.longest_new > 1.5
    assert after_moves.row("rigl", 0.1, start, [watch]).startswith(f"| rigl | 0.1 | {start} |")


def test_networks_learn_from_every_kind_of_first_mask(monkeypatch):
    first_masks = load("first_masks", monkeypatch)
    monkeypatch.setattr(first_masks, "STEPS", 50)
    for first in first_masks.FIRST_MASKS:
        accuracy = first_masks.train(first, "block:8", 0.3, 0)
        assert accuracy > 50, first
        assert first_masks.row(first, [[accuracy]]) == f"| {first} | {accuracy:.1f} ± 0.0 |"


def test_feeding_is_timed_beside_a_step(monkeypatch, capsys):
    feeding = load("feeding", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["feeding.py", "--batch", "4", "--seconds", "0.05"])
    feeding.main()
    names = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines()[2:]]
    assert names[0] == feeding.STEP
    assert names[1:] == ["nothing", *map(" ".join, feeding.AUGMENTATIONS[1:]), "crop flip, image by image"]
