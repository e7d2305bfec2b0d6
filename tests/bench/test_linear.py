import pytest
import torch

from cutwork.bench import layers, linear
from cutwork.bench.passes import PASSES
from cutwork.bench.run import Run, worst_error

SMALL = {
    "shapes": ["20x18"],
    "tokens": [7],
    "patterns": ["block:4", "block:5x3", "vector:16", "shuffled:4"],
    "densities": [0.3, 1.0],
    "precisions": ["fp32", "bf16"],
    "passes": list(PASSES),
    "forms": ["dense", "tile"],
}


def linear_groups(*, shapes, tokens, **options):
    found = linear.layers(shapes=shapes, tokens=tokens)
    return layers.groups(found, linear.LINEAR_FORMS, layers.Choices(**options))


def test_all_passes_of_all_patterns_and_precisions_are_equal_to_the_dense_ones():
    for group in linear_groups(**SMALL):
        candidates = group.candidates()
        assert len(candidates) == (3 if "fp32" in group.title else 4)
        for candidate in candidates:
            with torch.no_grad():
                results = candidate.build().results()
                error = worst_error(results, candidate.expected())
            assert error < (1e-5 if candidate.row.precision == "fp32" else 1e-2)
            assert len(results) == (4 if candidate.row.work == "step" else 1)


def test_operations_and_bytes_are_those_of_what_is_kept():
    one = {"patterns": ["block:16"], "densities": [0.5], "precisions": ["fp32"], "passes": ["forward"]}
    (group,) = linear_groups(**SMALL | one | {"shapes": ["32x64"], "tokens": [8]})
    dense, tile = group.candidates()
    assert dense.operations == 2 * 8 * 32 * 64
    assert dense.bytes == 4 * (8 * 32 + 8 * 64 + 32 * 64)
    assert tile.operations == dense.operations / 2
    assert tile.bytes == 4 * (8 * 32 + 8 * 64 + 32 * 64 / 2 + 4)
    assert (tile.row.density, tile.row.ideal) == (0.5, 2.0)


@pytest.mark.parametrize("pattern", SMALL["patterns"])
def test_int8_is_near_the_dense_layer_in_fp32(pattern):
    one = {"patterns": [pattern], "precisions": ["int8"], "passes": ["forward"], "forms": ["dense", "tile", "onnx"]}
    (group,) = linear_groups(**SMALL | one)
    run = Run()
    run.compare(group, seconds=1)
    found = [row for row in run.rows if (row.form, row.precision) == ("tile", "int8")]
    assert [row.equal for row in found] == [True, True]
    assert all(row.error > 1e-4 for row in found)


@pytest.mark.parametrize("pattern", ["block:4", "vector:4", "block:16"])
def test_other_packages_agree_or_say_why_not(pattern):
    forms = [form for form in linear.LINEAR_FORMS if form != "compiled"]
    (group,) = linear_groups(
        **SMALL | {"patterns": [pattern], "precisions": ["fp32"], "passes": ["forward"], "forms": forms}
    )
    run = Run()
    run.compare(group, seconds=1)
    assert all(row.equal for row in run.rows)
    assert {"dense", "tile", "csr", "csr-left"} <= {row.form for row in run.rows}
    told = "\n".join(run.notes)
    assert pattern == "block:4" or "square blocks" in told or "hang over" in told


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.sparse", None)
    (group,) = linear_groups(
        **SMALL | {"patterns": ["block:4"], "precisions": ["fp32"], "passes": ["forward"], "forms": ["scipy"]}
    )
    run = Run()
    run.compare(group, seconds=1)
    assert [row.form for row in run.rows] == ["dense"]
    assert next(iter(run.notes)) == ("scipy fp32 left out: scipy is not installed; pip install 'cutwork[benchmark]'")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"shapes": ["768"]}, "unknown shape '768'; write inputs x outputs, for example 768x3072"),
        ({"shapes": ["0x5"]}, "unknown shape '0x5'"),
        ({"tokens": [0]}, "tokens 0; give at least 1"),
        ({"densities": [0.0]}, r"density=0.0 is outside \(0, 1\]; 0.1 keeps a tenth"),
        ({"patterns": ["blok:4"]}, "unknown pattern 'blok:4'"),
        ({"patterns": ["unstructured"]}, "unstructured has no tiles"),
        ({"precisions": ["int8"], "passes": ["step"]}, "no kernel computes step in int8"),
    ],
)
def test_a_wrong_choice_says_so_before_anything_is_measured(choice, message):
    with pytest.raises(ValueError, match=message):
        linear_groups(**SMALL | choice)


def test_shapes_say_which_side_comes_in():
    one = {"patterns": ["block:4"], "precisions": ["fp32"], "passes": ["forward"], "shapes": ["20x18", "20->18"]}
    groups = linear_groups(**SMALL | one)
    assert {group.title for group in groups} == {"linear 20->18, 7 tokens, forward, fp32, block:4"}
    assert {group.candidates()[0].row.shape for group in groups} == {"20->18"}
