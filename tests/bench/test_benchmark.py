import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import cutwork as cw


def sparse_and_dense(pattern="block:16"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 32))
    cw.sparsify(model, {"0": pattern}, density=0.25)
    dense = copy.deepcopy(model)
    cw.bake(dense)
    cw.pack(model, forms="tiles")
    return model, dense


def test_the_whole_model_comes_first_then_each_sparse_layer():
    model, dense = sparse_and_dense()
    compared = cw.benchmark(model, against=dense, inputs=torch.randn(5, 64), seconds=0.01)
    assert [(row.what, row.shape, row.form) for row in compared.results.rows] == [
        ("model", "the whole model", "dense"),
        ("model", "the whole model", "sparse"),
        ("layer", "0", "dense"),
        ("layer", "0", "sparse"),
    ]
    assert all(row.equal and row.ratio for row in compared.results.rows)
    assert compared.ratio == compared.results.rows[1].ratio
    assert [row.tokens for row in compared.results.rows] == [5] * 4
    assert str(compared).splitlines()[4].startswith("the whole model tiles block:16    0.25")


def test_a_model_with_other_outputs_gets_no_ratio():
    model, dense = sparse_and_dense()
    with torch.no_grad():
        dense[0].weight[0, 0] += 1
    compared = cw.benchmark(model, against=dense, inputs=torch.randn(5, 64), seconds=0.01)
    assert compared.ratio is None
    assert not compared.results.all_are_equal
    assert str(compared).count("differs") >= 2


def test_a_layer_that_differs_is_told_from_those_that_do_not():
    model, dense = sparse_and_dense()
    cw.sparsify(model, {"3": "block:16"}, density=0.5)
    compared = cw.benchmark(model, against=dense, inputs=torch.randn(5, 64), seconds=0.01)
    assert [row.equal for row in compared.results.rows if row.form == "sparse"] == [False, True, False]


def test_the_models_come_back_as_they_were():
    model, dense = sparse_and_dense()
    model.train()
    dense.eval()
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    cw.benchmark(model, against=dense, inputs=torch.randn(5, 64), seconds=0.01)
    assert [module.training for module in model] == [True, True, False, True]
    assert not any(module.training for module in dense)
    assert not any(module._forward_pre_hooks for module in model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("inputs", [(torch.ones(2, 64),), [torch.ones(2, 64)], {"input": torch.ones(2, 64)}])
def test_inputs_may_be_several_or_named(inputs):
    model, dense = sparse_and_dense()
    assert cw.benchmark(model, against=dense, inputs=inputs, seconds=0.01).ratio


def test_bfloat16_is_measured_as_such():
    model, dense = sparse_and_dense()
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    compared = cw.benchmark(model.bfloat16(), against=dense.bfloat16(), inputs=x, seconds=0.01)
    assert {row.precision for row in compared.results.rows} == {"bf16"}
    assert compared.ratio


def test_a_layer_without_a_dense_form_of_its_name_is_a_note():
    model, dense = sparse_and_dense()
    renamed = nn.ModuleDict({"a": dense[0]})
    renamed.forward = dense.forward
    compared = cw.benchmark(model, against=renamed, inputs=torch.randn(5, 64), seconds=0.01)
    assert "0 has no dense form of this name to compare with" in compared.results.notes


def test_a_model_without_sparse_layers_is_refused():
    _, dense = sparse_and_dense()
    with pytest.raises(ValueError, match="the model has no sparse layer; sparsify"):
        cw.benchmark(dense, against=dense, inputs=torch.randn(5, 64))


def test_other_precisions_are_refused():
    model, dense = sparse_and_dense()
    with pytest.raises(
        ValueError, match=r"computes in torch.float64; what can be measured is torch.float32, torch.bfloat16"
    ):
        cw.benchmark(model.double(), against=dense.double(), inputs=torch.randn(5, 64).double())


def test_the_table_says_which_form_each_layer_has():
    model, dense = sparse_and_dense()
    cw.sparsify(model, {"3": "block:16"}, density=0.5)
    dense = copy.deepcopy(model)
    cw.unpack(dense)
    cw.bake(dense)
    compared = cw.benchmark(model, against=dense, inputs=torch.randn(5, 64), seconds=0.01)
    assert compared.forms == {"the whole model": "tiles dense", "0": "tiles", "3": "dense"}
    head, *lines = str(compared).splitlines()[3:7]
    assert head.split()[:3] == ["layer", "form", "pattern"]
    assert [line.split("block:16")[0].split()[-1] for line in lines] == ["dense", "tiles", "dense"]


@pytest.mark.parametrize("form", ["tiles-bf16", "tiles-int8"])
def test_layers_in_fewer_bits_are_measured_with_their_own_tolerance(form):
    model, dense = sparse_and_dense()
    cw.pack(model, forms=form)
    compared = cw.benchmark(model, against=dense, inputs=torch.randn(5, 64), seconds=0.01)
    assert compared.forms == {"the whole model": form, "0": form}
    rows = [row for row in compared.results.rows if row.form == "sparse"]
    assert [(row.equal, row.density) for row in rows] == [(True, 0.25)] * 2
    assert all(row.error > 1e-4 for row in rows)


def test_inputs_that_are_not_finite_are_called_so_not_wrong_results():
    model, dense = sparse_and_dense()
    compared = cw.benchmark(model, against=dense, inputs=torch.full((5, 64), torch.nan), seconds=0.01)
    assert compared.ratio is None
    assert "inputs or results are not finite numbers" in str(compared)
    assert "wrong" not in str(compared)


@pytest.mark.parametrize("seconds", [-1, 0])
def test_no_time_is_refused_as_it_was_given(seconds):
    model, dense = sparse_and_dense()
    with pytest.raises(ValueError, match=f"^seconds={seconds}; give more than 0"):
        cw.benchmark(model, against=dense, inputs=torch.randn(5, 64), seconds=seconds)


def test_unsteady_times_are_marked_in_the_table():
    model, dense = sparse_and_dense()
    compared = cw.benchmark(model, against=dense, inputs=torch.randn(5, 64), seconds=0.01)
    rows = [replace(row, spread=0.5 if row.form == "sparse" else 0.0) for row in compared.results.rows]
    text = str(replace(compared, results=replace(compared.results, rows=tuple(rows))))
    assert text.count("us~") == 2
