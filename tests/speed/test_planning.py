import copy
import logging
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import cutwork as cw
from cutwork.layers.compressed import CompressedLinear
from cutwork.sparsity.fixed import Fixed
from cutwork.speed.cache import TimingCache, cache_file

from .models import sparse_model


def test_packing_gives_the_layers_their_forms_and_keeps_the_results(speed):
    model, x = sparse_model(), torch.randn(5, 32)
    y = model(x)
    plan = cw.pack(model, x)
    assert isinstance(model[0], CompressedLinear)
    torch.testing.assert_close(model(x), y)
    assert "block:8" in str(plan)
    again = cw.plan(model, x)
    assert [row.form for row in again.rows] == [row.form for row in plan.rows]
    speed["tiles"] = 1.0
    cw.pack(model, x, cache=False)
    assert not any(isinstance(layer, CompressedLinear) for layer in model)
    torch.testing.assert_close(model(x), y)


def test_a_dense_form_reads_the_weight_as_it_is_where_nothing_trains(speed, monkeypatch):
    model, x = sparse_model(), torch.randn(5, 32)
    y = model(x)
    cw.pack(model, x, forms="dense")
    reads = []
    monkeypatch.setattr(Fixed, "forward", lambda sparsity, weight: reads.append(1) or weight * sparsity.mask)
    with torch.no_grad():
        torch.testing.assert_close(model(x), y)
    assert not reads
    model(x)
    assert len(reads) == 3
    cw.pack(model, x, forms="dense", training=True)
    reads.clear()
    with torch.no_grad():
        model(x)
    assert len(reads) == 3


def test_a_resting_layer_reads_what_others_compute_of_its_weight(speed):
    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    model, x = sparse_model(), torch.randn(5, 32)
    cw.pack(model, x, forms="dense")
    with torch.no_grad():
        expected = 2 * (model[0](x) - model[0].bias)
        parametrize.register_parametrization(model[0], "weight", Doubled())
        torch.testing.assert_close(model[0](x) - model[0].bias, expected)


def test_a_packed_model_trains(speed):
    model, x = sparse_model(), torch.randn(5, 32)
    cw.pack(model, x, training=True)
    optimizer = torch.optim.AdamW(model.parameters())
    before = copy.deepcopy(model[0].values)
    model(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].values, before)


def test_a_cache_that_is_damaged_or_cannot_be_written_is_only_warned_about(speed, caplog, tmp_path):
    model, x = sparse_model(), torch.randn(3, 32)
    cache_file().parent.mkdir()
    cache_file().write_text("{")
    with caplog.at_level(logging.WARNING):
        cw.plan(model, x)
    assert "lines that hold no timings" in caplog.text
    assert TimingCache(cache_file()).get("nothing") == {}
    folder = tmp_path / "a file"
    folder.write_text("")
    with caplog.at_level(logging.WARNING):
        TimingCache(folder / "timings.jsonl").put("key", {"dense": 1.0})
    assert "cannot be kept" in caplog.text


def test_planning_leaves_the_model_as_it_was(speed):
    model = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Dropout())
    cw.sparsify(model, "block:8", density=0.25)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    cw.plan(model, torch.ones(3, 32), training=True, cache=False)
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_followed_model_is_not_packed(speed):
    model = nn.Sequential(nn.Linear(32, 32))
    sparsifier = cw.sparsify(model, "block:8", density=0.25)
    sparsifier.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="moved by a sparsifier that follows an optimizer"):
        cw.pack(model, torch.randn(3, 32))


def test_bfloat16_tiles_take_and_return_what_the_model_computes_with(speed):
    model, x = sparse_model(), torch.randn(5, 32)
    y = model(x)
    cw.pack(model, x, precisions=["bf16"])
    assert model[0].values.dtype == torch.bfloat16
    found = model(x)
    assert found.dtype == torch.float32
    with pytest.raises(ValueError, match="0: its values were rounded to bfloat16"):
        cw.unpack(model)
    torch.testing.assert_close(found, y, rtol=0.05, atol=0.05)
    found.sum().backward()
    assert model[0].values.grad is not None


def test_int8_layers_infer_only_and_stand_alone(speed, tmp_path):
    model, x = sparse_model(), torch.randn(2, 3, 32)
    cw.pack(model, x, precisions=["int8"])
    twin = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(model(x), twin(x))
        assert torch.equal(model(x), torch.compile(model, backend="eager", fullgraph=True)(x))
    report = cw.report(model)
    assert report.rows[0].kernel.startswith(("cpu-tiles int8", "reference"))
    assert report.rows[0].bytes < 32 * 64
    cw.save(model, tmp_path / "model.safetensors")
    state = model.state_dict()
    model.load_state_dict(state)
    for key, damage in (("0.col", 9999), ("0.ptr", 1)):
        damaged = {**state, key: state[key] + damage}
        with pytest.raises(ValueError, match=r"0: its int8 weight is damaged: .*; load what state_dict"):
            model.load_state_dict(damaged)
        assert torch.equal(model.state_dict()[key], state[key])
    with pytest.raises(ValueError, match="its last size must be 32"):
        model[0](torch.ones(2, 5))
    with pytest.raises(ValueError, match="int8 is for inference"):
        cw.plan(sparse_model(), torch.randn(5, 32), precisions=["int8"], training=True)
    with pytest.raises(ValueError, match="unknown precision 'fp8'; write one of 'bf16', 'int8'"):
        cw.plan(sparse_model(), torch.randn(5, 32), precisions=["fp8"])


def test_a_plan_for_other_layers_is_refused(speed):
    plan = cw.plan(sparse_model(), torch.randn(5, 32))
    shape, pattern = (nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 64)) for width in (64, 32))
    for model in (shape, pattern):
        model.extend([nn.ReLU(), nn.Linear(64, 8)])
    cw.sparsify(shape, {"*": "vector:8", "4": "unstructured"}, density=0.25)
    with pytest.raises(ValueError, match=r"^0 was planned as 64x32 block:8; in this model it is 64x32 vector:8"):
        plan.apply(shape)
    cw.sparsify(pattern, {"*": "block:8", "4": "unstructured"}, density=0.25)
    with pytest.raises(ValueError, match=r"^0 was planned as 64x32 block:8; in this model it is 32x32 block:8"):
        plan.apply(pattern)
    assert not any(isinstance(layer, CompressedLinear) for layer in (*shape, *pattern))


def int8_model():
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))
    cw.sparsify(model, {"*": "dense", "2": "block:8"}, density=0.25)
    cw.pack(model, forms="int8")
    return model


def test_a_gradient_that_would_end_in_an_int8_layer_is_refused():
    model, x = int8_model(), torch.randn(5, 32)
    with pytest.raises(ValueError, match=r"is for inference, and its input needs a gradient, .* under torch\.no_grad"):
        model(x)
    with torch.no_grad():
        y = model(x)
    with torch.inference_mode():
        assert torch.equal(model(x), y)
    assert torch.equal(model.requires_grad_(False)(x), y)


def test_operations_of_int8_layers_count():
    model, x = int8_model(), torch.randn(1, 32)
    before = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))
    cw.sparsify(before, {"*": "dense", "2": "block:8"}, density=0.25)
    for counting in ("products", "every-operation"):
        assert cw.flops(model, x, counting=counting).layers == cw.flops(before, x, counting=counting).layers
    assert cw.flops(model[2:], torch.randn(3, 64)).sparse == 3 * 2 * 64 * 64 // 4
    report = cw.report(model, x)
    assert [row.kept_flops for row in report.rows] == [2 * 32 * 64, 2 * 64 * 64 // 4]
    assert report.total.flops == 2 * 32 * 64 + 2 * 64 * 64


@pytest.mark.parametrize(
    "call",
    [
        *(cw.plan, cw.pack, cw.bake, cw.unpack),
        lambda model: cw.fuse(model, torch.ones(1, 32)),
        lambda model: cw.draw_masks(model, "masks.png"),
        lambda model: cw.copy_masks(model, model),
    ],
)
def test_int8_layers_are_named_where_their_weights_are_missed(call):
    message = r"2 compute in int8, for inference only, .* take the model as it was before pack"
    with pytest.raises(ValueError, match=message):
        call(int8_model())


def test_patterns_and_precisions_of_another_type_are_explained(speed):
    with pytest.raises(TypeError, match="a pattern is a text or a Pattern; got 5"):
        cw.plan(nn.Linear(16, 16), torch.ones(1, 16), speedup=2, patterns=5)
    with pytest.raises(ValueError, match="unknown precision 5; write one of 'bf16', 'int8'"):
        cw.pack(sparse_model(), torch.randn(5, 32), precisions=5)
