import json

import pytest

from cutwork.files.checkpoint import describe
from cutwork.lab import demo
from cutwork.lab.demo import run
from cutwork.methods import RigL, Switch, srste


@pytest.fixture(scope="module", autouse=True)
def quick_comparison():
    """Compare the packed network for a moment only: no test here believes the times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SECONDS", 0.1)
        yield


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
        assert 0.1 < getattr(result.sparse, field) / getattr(result.dense, field) < 0.13
    assert result.sparse.bytes_on_disk < 0.15 * result.dense.bytes_on_disk


def test_the_mask_moves_also_in_a_short_run(short):
    result, _, _ = short
    assert result.num_moves == 3
    assert 0.12 < result.itop_rate < 1


def test_the_saved_network_comes_back_equal(short):
    result, folder, _ = short
    assert result.reload_is_equal
    assert {layer.pattern for layer in describe(folder / "sparse.safetensors").layers.values()} == {"block:16"}


def test_fixed_masks_in_tiles_train_compressed_and_others_say_why_not(short, tmp_path):
    result, folder, _ = short
    assert result.storage == "compressed"
    assert {layer.storage for layer in describe(folder / "sparse.safetensors").layers.values()} == {"compressed"}
    assert "trained and multiplied only what their masks kept" in str(result)
    other = run(epochs=1, pattern="unstructured", output=tmp_path)
    assert other.storage == "dense"
    assert "its steps are no\nfaster" in str(other)
    assert "unstructured has no tiles to store" in str(other)


def test_the_packed_network_is_equal_and_measured_beside_the_dense_one(short):
    result, folder, _ = short
    packed = result.packed
    assert packed.ratio is not None
    assert packed.ratio == pytest.approx(packed.dense_ms / packed.packed_ms)
    assert f"{packed.ratio:.2f} times as fast" in str(result)
    assert json.loads((folder / "result.json").read_text())["packed"]["ratio"] == packed.ratio


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


def test_a_density_that_contradicts_the_pattern_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"fixes the density at 0\.5; got density=0\.1"):
        run(epochs=1, pattern="2:4", density=0.1, output=tmp_path)


@pytest.mark.parametrize(("method", "pattern"), [("supermask", "block:16"), ("ste", "block:16"), ("srste", "2:4")])
def test_masks_over_whole_weights_are_folded_for_a_small_file(tmp_path, method, pattern):
    result = run(epochs=1, pattern=pattern, method=method, output=tmp_path)
    assert result.weights_were_folded
    assert "folded into the weights" in str(result)
    assert result.reload_is_equal
    assert result.sparse.bytes_on_disk < (result.density + 0.06) * result.dense.bytes_on_disk
    assert result.sparse.parameters < (result.density + 0.02) * result.dense.parameters


def test_nothing_is_folded_where_only_kept_weights_train(short):
    result, _, _ = short
    assert not result.weights_were_folded
    assert "folded" not in str(result)


def test_parameters_that_a_method_learns_besides_the_weights_do_not_count(short, tmp_path):
    result, _, _ = short
    assert (
        run(epochs=1, method=RigL(every=5, estimate=True), output=tmp_path).sparse.parameters
        == result.sparse.parameters
    )


def test_a_network_that_ends_dense_is_saved_whole(tmp_path):
    result = run(epochs=1, pattern="2:4", method=Switch(srste(), dense_from=0.5), output=tmp_path)
    assert result.reload_is_equal
    assert not result.weights_were_folded
    assert result.sparse.parameters == result.dense.parameters


def test_no_epochs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="epochs=0"):
        run(epochs=0, output=tmp_path)


def test_a_seed_that_no_generator_takes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="seed 9223372036854775808; give a whole number of less than 19 digits"):
        run(seed=2**63, output=tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside", tmp_path / "a\udcffb"):
        with pytest.raises(
            ValueError, match=r"output .*; name a folder, there or not yet there, in which you may write"
        ):
            run(epochs=1, output=folder, progress=lambda *call: pytest.fail("it trained"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
