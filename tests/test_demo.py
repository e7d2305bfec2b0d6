import json

import pytest
import torch

from cutwork.checkpoint import describe
from cutwork.demo import mask_picture, run


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    calls = []
    return run(epochs=4, output=folder, progress=lambda *call: calls.append(call)), folder, calls


def test_both_networks_learn_and_the_sparse_one_costs_a_tenth(short):
    result, _, _ = short
    assert result.dense.accuracy > 0.8
    assert result.sparse.accuracy > 0.6
    for field in ("parameters", "megaflops_forward", "megaflops_training"):
        assert 0.1 < getattr(result.sparse, field) / getattr(result.dense, field) < 0.12
    assert result.sparse.bytes_on_disk < 0.15 * result.dense.bytes_on_disk
    assert 0.1 <= result.itop_rate < 1


def test_the_saved_network_comes_back_equal(short):
    result, folder, _ = short
    assert result.reload_is_equal
    assert {layer.pattern for layer in describe(folder / "sparse.safetensors").layers.values()} == {"block:16"}


def test_everything_it_says_is_also_written(short):
    result, folder, calls = short
    assert json.loads((folder / "result.json").read_text())["sparse"]["accuracy"] == result.sparse.accuracy
    assert all(file in str(result) for file in result.files)
    assert calls[-1][0] == calls[-1][1] == 4 * 22


def test_the_same_seed_gives_the_same_networks(short, tmp_path):
    result, folder, _ = short
    again = run(epochs=4, output=tmp_path)
    assert again.sparse.accuracy == result.sparse.accuracy
    assert (tmp_path / "sparse.safetensors").read_bytes() == (folder / "sparse.safetensors").read_bytes()


def test_patterns_that_fix_their_density_need_none(tmp_path):
    result = run(epochs=1, pattern="2:4", method="srste", output=tmp_path)
    assert result.density == 0.5
    assert result.reload_is_equal


def test_no_epochs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="epochs=0"):
        run(epochs=0, output=tmp_path)


def test_a_large_mask_is_drawn_small():
    lines = mask_picture("a", torch.rand(300, 200) < 0.5).splitlines()
    assert len(lines) == 17
    assert all(len(line) <= 32 for line in lines[1:])
