from dataclasses import replace

import pytest

from cutwork.bench.bars import Bar, find_bars
from cutwork.bench.picture import draw
from cutwork.bench.results import Measurement, Results
from cutwork.speed.machine import Machine

MACHINE = Machine("a CPU", 2, 1, "avx512", "2.13.0", "0.1.0", "2026-01-01T00:00:00+00:00", "a command")
ROW = Measurement(
    "model", "vit-b16 linears", 8, "forward", "block:32", 0.1, "packed", "fp32", equal=True, error=0.0, ratio=7.5
)
DENSE = replace(ROW, pattern="dense", density=1.0, form="dense", ratio=0.98)
COMPILED = replace(DENSE, form="compiled", ratio=1.0)
ROWS = [DENSE, COMPILED, replace(ROW, density=0.2, ratio=5.7, ideal=4.2), replace(ROW, ideal=7.0)]
TITLE = "model vit-b16 linears, forward, batch 8"


def test_few_densities_are_bars_with_the_dense_forms_above():
    assert find_bars(ROWS) == {
        TITLE: [
            Bar("dense", "dense", 0.98, None),
            Bar("compiled", "compiled", 1.0, None),
            Bar("packed, 20 %", "packed", 5.7, 4.2),
            Bar("packed, 10 %", "packed", 7.5, 7.0),
        ]
    }


def test_a_pattern_and_a_precision_are_named_where_there_are_several():
    more = [replace(ROW, pattern="vector:16"), replace(DENSE, precision="bf16", ratio=0.9)]
    labels = [bar.label for bar in find_bars([*ROWS, *more])[TITLE]]
    assert labels == [
        "dense fp32",
        "dense bf16",
        "compiled fp32",
        "packed fp32 block:32, 20 %",
        "packed fp32 block:32, 10 %",
        "packed fp32 vector:16, 10 %",
    ]


def test_dense_and_others_forms_have_their_best_bar_alone():
    again = [
        replace(DENSE, ratio=0.9),
        *(replace(ROW, form="csr", pattern=f"block:{size}", ratio=1 / size) for size in (4, 2)),
    ]
    bars = find_bars([*ROWS, *again])[TITLE]
    assert [(bar.label, bar.ratio) for bar in bars if bar.form in ("dense", "csr")] == [
        ("dense", 0.98),
        ("csr block:2, 10 %", 0.5),
    ]


@pytest.mark.parametrize(
    "rows",
    [
        [replace(ROW, density=density) for density in (0.5, 0.2, 0.1, 0.05)],
        [DENSE, COMPILED],
        [replace(ROW, what="random")],
        [replace(ROW, ratio=None, equal=False)],
    ],
    ids=["many densities", "nothing sparse", "random layers", "nothing equal"],
)
def test_what_makes_no_bars(rows):
    assert find_bars(rows) == {}


def test_the_picture_has_every_bar_with_its_number(tmp_path):
    results = Results(MACHINE, (*ROWS, replace(ROW, form="moving", ratio=0.54)))
    (file,) = draw(results, tmp_path / "picture.svg")
    text = file.read_text()
    for part in (">compiled<", ">packed, 10 %<", ">7.50x<", ">0.54x<", ">ideal<", TITLE, "a CPU, 1 thread"):
        assert part in text
    assert draw(results, tmp_path / "again.svg")[0].read_text() == text
