import csv
import io
import json
from dataclasses import asdict, replace

from cutwork.bench import results as results_file
from cutwork.bench.results import Measurement, Results, find_unsteady_bases
from cutwork.speed.machine import Machine

MACHINE = Machine(
    "a CPU", 2, 2, "avx512", "2.13.0", "0.1.0", "2026-01-01T00:00:00+00:00", "cutwork benchmark linear", "abc"
)
DENSE = Measurement(
    *("linear", "768x3072", 197, "forward", "dense", 1.0, "dense", "fp32"),
    equal=True,
    error=0.0,
    median_ms=8.5,
    spread=0.02,
    rounds=5,
    ratio=1.0,
    ratio_to_fp32=1.0,
    gflops_per_s=109.0,
    gbytes_per_s=1.5,
)
TILE = replace(
    DENSE,
    pattern="block:16",
    density=0.1,
    form="tile",
    median_ms=0.5,
    spread=0.2,
    ratio=17.0,
    ratio_to_fp32=17.0,
    ideal=10.0,
)
WRONG = Measurement("linear", "768x3072", 197, "forward", "block:16", 0.1, "bsr", "fp32", equal=False, error=None)
ROWS = (DENSE, TILE, WRONG)


def test_json_gives_back_every_row():
    results = Results(MACHINE, ROWS, ("a note",))
    assert Results.from_json(results.to_json()) == results


def test_csv_has_a_line_for_each_row_and_leaves_empty_what_was_not_measured():
    dense, _, wrong = csv.DictReader(io.StringIO(Results(MACHINE, ROWS).to_csv()))
    assert dense == {name: "" if value is None else str(value) for name, value in asdict(DENSE).items()}
    assert wrong["equal"] == "False" and wrong["error"] == wrong["median_ms"] == ""


def test_json_has_no_ratio_of_what_differs():
    wrong = json.loads(Results(MACHINE, ROWS).to_json())["rows"][2]
    assert wrong["ratio"] is wrong["ratio_to_fp32"] is wrong["median_ms"] is None


def test_the_table_shows_machine_rows_and_notes():
    text = str(Results(MACHINE, ROWS, ("a note",)))
    assert text.splitlines() == [
        "a CPU, 2 cores, 2 threads, tile kernels: avx512",
        "torch 2.13.0, cutwork 0.1.0 at abc, 2026-01-01T00:00:00+00:00",
        "$ cutwork benchmark linear",
        "",
        "linear 768x3072, forward, tokens 197",
        "pattern  density form  precision  median x dense x fp32 ideal GF/s GB/s      error",
        "dense          1 dense fp32       8.5 ms    1.00   1.00  1.00  109  1.5      0e+00",
        "block:16     0.1 tile  fp32      500 us~   17.00  17.00 10.00  109  1.5      0e+00",
        "block:16     0.1 bsr   fp32      differs                                not finite",
        "",
        "a note",
    ]


def test_a_wide_table_fits_100_columns():
    wide = replace(
        TILE,
        pattern="shuffled:16x16",
        density=0.0123,
        form="compiled",
        median_ms=12345.6,
        ratio=123.45,
        ratio_to_fp32=0.01,
        ideal=81.3,
        gflops_per_s=1234.0,
        gbytes_per_s=123.4,
        error=1.2e-7,
    )
    assert max(map(len, str(Results(MACHINE, (wide,))).splitlines())) <= results_file.WIDTH


def test_everything_is_written_to_a_folder(tmp_path):
    points = [replace(TILE, density=density, ideal=1 / density, ratio=0.9 / density) for density in (0.1, 0.5)]
    files = Results(MACHINE, (DENSE, *points)).write(tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["results.json", "results.csv"]
    assert all(file.stat().st_size for file in files)
    assert Results.from_json(files[0].read_text()).rows == (DENSE, *points)


def test_one_of_a_thing_is_not_called_several():
    assert str(replace(MACHINE, cores=1, threads=1)).startswith("a CPU, 1 core, 1 thread, tile kernels")


def test_unsteady_bases_are_the_dense_forms_that_ratios_rest_on():
    slow, fast = replace(DENSE, spread=0.3), replace(DENSE, form="onnx", median_ms=4.0, spread=0.4)
    between = replace(DENSE, form="compiled", median_ms=5.0, spread=0.5)
    assert find_unsteady_bases((DENSE, between, TILE)) == [between]
    assert find_unsteady_bases((slow, between, fast, TILE, DENSE, TILE)) == [slow, fast]
