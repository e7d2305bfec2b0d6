"""The programs under examples/ run, and say what is so."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def sparse_ift(monkeypatch):
    spec = importlib.util.spec_from_file_location("sparse_ift", ROOT / "examples" / "sparse_ift.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sparse_ift", module)
    spec.loader.exec_module(module)
    # Which form of the dense model is faster is for the example to find; compiling takes longer than all else here.
    monkeypatch.setattr("torch.compile", lambda model: model)
    return module


def test_all_members_train_at_the_dense_operations(sparse_ift):
    small = "--images 96 --epochs 1 --width 16 --densities 0.25 --pattern block:4 --rounds 1"
    dense, *others = sparse_ift.compare(sparse_ift.parse(small.split()))
    assert [cells["model"] for cells in others] == [*sparse_ift.MEMBERS, sparse_ift.PRUNED]
    rows = {cells["model"]: cells for cells in (dense, *others) if "why not" not in cells}
    assert {*rows} >= {"dense", "wide", "parallel", "factorized", "doped", "wide, pruned"}
    flops = {name: int(cells["FLOPs"].replace(",", "")) for name, cells in rows.items()}
    # Tiles that an edge cuts count whole units of other sizes.
    assert all(number == pytest.approx(flops["dense"], rel=0.02) for number in flops.values())
    pruned, wide = rows["wide, pruned"], rows["wide"]
    assert int(pruned["at first"].replace(",", "")) > 3 * flops["dense"]
    # What was pruned still holds its zeros, four times as many numbers; the compressed one does not.
    assert float(wide["MiB"]) < 1.5 * float(dense["MiB"]) < 0.5 * float(pruned["MiB"])
    assert float(dense["x dense"]) == 1
    assert all(float(cells["kept MiB"]) > 0 for cells in rows.values())


def test_it_prints_a_table(sparse_ift, capsys):
    options = "--images 64 --epochs 1 --width 8 --densities 0.5 --members parallel --rounds 1 --seeds 2 --batch 16"
    sparse_ift.main(options.split())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "dense", "parallel", "wide,"]


def test_costs_need_no_training(sparse_ift):
    options = "--shape 3x8x8 --width 16 --densities 0.25 --members wide parallel --rounds 1 --pattern block:4 --batch 4"
    dense, wide, parallel, pruned = sparse_ift.compare(sparse_ift.parse(options.split()))
    assert dense["accuracy"] == wide["accuracy"] == ""
    assert all(float(cells["step ms"]) > 0 for cells in (dense, wide, parallel, pruned))
    assert all(float(cells["packed"]) > 0 for cells in (dense, wide, parallel))
    assert "packed" not in pruned


def test_what_cannot_be_says_why(sparse_ift):
    options = "--images 64 --epochs 1 --width 8 --densities 0.9 --members parallel --rounds 1"
    rows = list(sparse_ift.compare(sparse_ift.parse(options.split())))
    assert rows[1]["why not"].startswith("density=0.9 gives one branch")
