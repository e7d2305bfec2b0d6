import json

import pytest
import torch
from torch import nn

import cutwork as cw


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 32), nn.Linear(32, 4, bias=False))


def sparse_model(method="static", pattern="block:4"):
    dense = model()
    cw.sparsify(dense, {"*": pattern, "3": "dense"}, density=0.25, method=method)
    return dense


def test_each_layer_has_a_row_with_what_its_mask_keeps():
    first, second, last, rest = cw.report(sparse_model(), torch.rand(1, 16)).rows
    assert (first.layer, first.kind, first.shape, first.pattern) == ("0", "Linear", (32, 16), "block:4")
    assert (first.density, first.parameters, first.kept_parameters) == (0.25, 16 * 32 + 32, 16 * 8 + 32)
    assert (first.flops, first.kept_flops) == (1024, 256)
    assert (first.bytes, first.kept_bytes, first.kernel) == (4 * first.parameters, 4 * first.kept_parameters, "dense")
    assert (second.pattern, second.kept_flops) == ("block:4", 512)
    assert (last.pattern, last.density, last.kept_parameters, last.kept_flops) == ("dense", 1.0, 128, 256)
    assert (rest.layer, rest.parameters, rest.kept_parameters, rest.flops) == ("(all else)", 64, 64, None)


def test_a_compressed_layer_counts_what_it_stores():
    dense, compressed = model(), model()
    for each, storage in ((dense, "dense"), (compressed, "compressed")):
        cw.sparsify(each, {"0": "block:4", "2": "block:5x3"}, density=0.25, storage=storage)
    x = torch.rand(1, 16)
    expected, table = cw.report(dense, x), cw.report(compressed, x)
    for row, one in zip(table.rows, expected.rows, strict=True):
        same = ("layer", "kind", "shape", "pattern", "density", "parameters", "kept_parameters", "flops", "kept_flops")
        assert all(getattr(row, field) == getattr(one, field) for field in same)
    first = table.rows[0]
    index = compressed[0].sparsity
    assert first.bytes == first.kept_bytes == 4 * (first.kept_parameters + len(index.ptr) + len(index.col))
    assert first.kernel == compressed[0].kernel != "dense"
    assert "costs b" not in str(table)
    assert "costs b" in str(expected)


@pytest.mark.parametrize("method", ["static", "ste", "supermask", cw.RigL(every=1, estimate=True, until=9)])
@pytest.mark.parametrize("pattern", ["unstructured", "shuffled:8", "2:4"])
def test_the_total_is_that_of_the_dense_model(method, pattern):
    dense, sparse = model(), model()
    amount = None if pattern == "2:4" else 0.25
    cw.sparsify(sparse, pattern, density=amount, method=method)
    total, whole = cw.report(sparse, torch.rand(2, 16)).total, cw.report(dense, torch.rand(2, 16)).total
    assert total.parameters == whole.parameters == sum(parameter.numel() for parameter in dense.parameters())
    assert (total.flops, total.bytes) == (whole.flops, whole.bytes)
    num_kept = sum(int(layer.sparsity.mask.sum()) for layer in (sparse[0], sparse[2], sparse[3]))
    assert total.kept_parameters == num_kept + 32 + 64 + 32
    assert total.kept_flops == 2 * 2 * num_kept
    assert total.density == total.kept_parameters / total.parameters


def test_shared_weights_count_once():
    tied = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    cw.sparsify(tied, "unstructured", density=0.5)
    first, second = cw.report(tied).rows
    assert (first.parameters, first.kept_parameters) == (64, 32)
    assert (second.parameters, second.kept_parameters, second.density) == (8, 8, 0.5)


def test_bytes_follow_the_type_of_the_weights():
    assert cw.report(sparse_model().bfloat16()).total.bytes * 2 == cw.report(sparse_model()).total.bytes


def test_layers_that_compute_without_a_weight_have_a_row():
    layer = nn.TransformerEncoderLayer(32, 4, 64)
    closed = {row.layer: row for row in cw.report(layer).rows}
    assert (closed["self_attn"].shape, closed["self_attn"].parameters) == ((96, 32), 96 * 33)
    cw.sparsify(layer, "block:8", density=0.5)
    assert "self_attn" not in {row.layer for row in cw.report(layer).rows}
    row = next(row for row in cw.report(layer, torch.rand(5, 1, 32)).rows if row.layer == "self_attn")
    assert (row.kind, row.shape, row.parameters, row.flops) == ("OpenAttention", (), 0, 2 * 2 * 5 * 5 * 32)


def test_a_dense_model_is_said_to_be_dense():
    report = cw.report(nn.Linear(4, 4))
    assert (report.total.pattern, report.total.density) == ("all dense", 1.0)
    assert str(report).splitlines()[1].startswith("the model itself")
    assert str(report).splitlines()[-1].startswith("total") and "all dense" in str(report)


def test_a_model_without_parameters_has_an_empty_report():
    assert cw.report(nn.ReLU()).rows == ()
    assert cw.report(nn.ReLU()).total.density == 1.0


def test_the_cost_of_a_training_step_is_that_of_the_method():
    sparse, x = sparse_model(), torch.rand(1, 16)
    report, cost = cw.report(sparse, x, method="rigl"), cw.flops(sparse, x)
    assert report.training.kept_flops == cost.sparse_training("rigl")
    assert (report.training.method, report.training.flops) == ("RigL", cost.dense_training)
    assert str(report).endswith("A training step by RigL needs 3.09k of 9.98k FLOPs, 0.31 of a dense one.")
    assert cw.report(sparse, x).training is None


def test_layers_that_were_skipped_are_shown_with_the_reason():
    tied = nn.ModuleDict({"embed": nn.Embedding(64, 128), "middle": nn.Linear(128, 128), "head": nn.Linear(128, 64)})
    tied["head"].weight = tied["embed"].weight
    sparsifier = cw.sparsify(tied, "block:16", density=0.25, skip=True)
    report = cw.report(tied, skipped=sparsifier.skipped)
    below = str(report).split("costs b.\n")[1].splitlines()
    assert below[0].startswith("head stays dense: it shares its weight with embed (Embedding), which would stay dense;")
    assert all(len(line) <= 120 for line in below)
    assert json.loads(report.to_json())["skipped"] == sparsifier.skipped
    assert "stays dense" not in str(cw.report(tied))


def test_a_method_without_inputs_is_refused():
    with pytest.raises(ValueError, match=r"^method='rigl' needs inputs .*; pass them: report\(model, x, method"):
        cw.report(sparse_model(), method="rigl")


def test_json_holds_the_exact_numbers():
    report = cw.report(sparse_model(), torch.rand(1, 16), method="static")
    read = json.loads(report.to_json())
    assert [row["kept_parameters"] for row in read["rows"]] == [row.kept_parameters for row in report.rows]
    assert read["rows"][0]["shape"] == [32, 16]
    assert read["total"]["flops"] == report.total.flops
    assert read["training"] == {"method": "Static", "flops": 3 * report.total.flops, "kept_flops": 3 * 1024}


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        names = [f"encoder_layers_of_the_model_{index}_feed_forward_network" for index in range(12)]
        self.body = nn.ModuleDict({name: nn.Linear(4096, 11008, device="meta") for name in names})


def test_the_table_is_aligned_and_fits():
    lines = str(cw.report(Deep())).splitlines()
    assert max(map(len, lines)) <= 120
    assert len({line.index("dense") for line in lines[1:-1]}) == 1
    assert len({line.split()[0] for line in lines}) == len(lines)
    assert not any(line != line.rstrip() for line in lines)
