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
    return module


def test_all_members_train_at_the_dense_operations(sparse_ift):
    small = ["--images", "96", "--epochs", "1", "--width", "16", "--densities", "0.25", "--pattern", "block:4"]
    dense, *others = sparse_ift.compare(sparse_ift.parse(small))
    flops = {row[0]: int(row[4].replace(",", "")) for row in (dense, *others) if row[4]}
    assert [row[0] for row in others] == [*sparse_ift.MEMBERS, sparse_ift.PRUNED]
    # Tiles that an edge cuts count whole units of other sizes.
    assert all(number == pytest.approx(flops["dense"], rel=0.02) for number in flops.values())
    assert {*flops} >= {"wide", "parallel", "factorized", "doped", "wide, pruned"}
    pruned = others[-1]
    assert int(pruned[5].replace(",", "")) > 3 * flops["dense"]


def test_it_prints_a_table(sparse_ift, capsys):
    sparse_ift.main(["--images", "64", "--epochs", "1", "--width", "8", "--densities", "0.5", "--members", "parallel"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "dense", "parallel", "wide,"]


def test_what_cannot_be_says_why(sparse_ift):
    options = ["--images", "64", "--epochs", "1", "--width", "8", "--densities", "0.9", "--members", "parallel"]
    rows = list(sparse_ift.compare(sparse_ift.parse(options)))
    assert rows[1][-1].startswith("density=0.9 gives one branch")
