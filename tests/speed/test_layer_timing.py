from time import perf_counter

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.compressed import CompressedLinear
from cutwork.speed.cache import cache_file
from cutwork.speed.layer_timing import Usage, find_usages

from .models import sparse_model


def test_a_layer_is_measured_with_the_largest_input_that_it_sees_and_its_calls_are_counted():
    layer, unused = nn.Linear(4, 4), nn.Linear(4, 4)
    model = nn.ModuleDict({"layer": layer, "unused": unused})
    inputs = torch.ones(2, 4), torch.ones(3, 5, 4), torch.ones(4)
    usages = find_usages(model, {"layer": layer, "unused": unused}, lambda model: [layer(x) for x in inputs])
    assert usages == {"layer": Usage((3, 5, 4), torch.float32, calls=3)}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_example_lies_as_the_images_that_a_layer_sees(memory_format):
    layer, x = nn.Conv2d(3, 4, 1).bfloat16(), torch.ones(2, 3, 5, 6).bfloat16().to(memory_format=memory_format)
    usage = find_usages(layer, {"": layer}, lambda model: model(x))[""]
    example = usage.example(torch.device("cpu"))
    assert (example.shape, example.dtype, example.stride()) == (x.shape, x.dtype, x.stride())
    assert torch.equal(example, usage.example(torch.device("cpu")))


@pytest.mark.parametrize("change", ["pattern", "density", "stride", "tokens", "memory format", "training"])
def test_what_makes_a_layer_slower_is_measured_anew(speed, change):
    def time(what):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2 if what == "stride" else 1, padding=1))
        pattern = "block:4" if what == "pattern" else "block:8"
        cw.sparsify(model, pattern, density=0.9 if what == "density" else 0.4)
        x = torch.ones(2 if what == "tokens" else 1, 8, 6, 6)
        if what == "memory format":
            x = x.contiguous(memory_format=torch.channels_last)
        cw.plan(model, x, training=what == "training")

    time("first")
    time("first")
    assert speed["calls"] == 1
    time(change)
    assert speed["calls"] == 2


def test_equal_layers_are_measured_once_and_the_next_run_reads_the_cache(speed):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))
    cw.sparsify(model, "block:8", density=0.25)
    x = torch.randn(3, 32)
    cw.plan(model, x)
    assert speed["calls"] == 1
    assert cache_file().exists()
    cw.plan(model, x)
    assert speed["calls"] == 1
    cw.plan(model, torch.randn(4, 32))
    assert speed["calls"] == 2
    cw.plan(model, x, cache=False)
    assert speed["calls"] == 3


def test_forms_whose_results_differ_are_refused(speed, monkeypatch):
    model, x = sparse_model(), torch.randn(5, 32)
    monkeypatch.setattr(CompressedLinear, "forward", lambda layer, x: x.new_ones(len(x), layer.out_features))
    with pytest.raises(ValueError, match="the forms 'dense' and 'tiles' of a layer give results that differ by"):
        cw.plan(model, x)


def test_what_a_busy_machine_says_is_marked_and_not_kept(speed):
    model, x = sparse_model(), torch.randn(5, 32)
    speed["spread"] = 0.5
    plan = cw.plan(model, x)
    assert not plan.rows[0].is_steady
    assert plan.rows[0].reason == "about 2.0x faster than dense for 5x32; runs lie far apart, the machine is busy"
    assert "~2.00x" in str(plan)
    assert not cache_file().exists()
    speed["spread"], calls = 0.0, speed["calls"]
    steady = cw.plan(model, x)
    assert speed["calls"] > calls
    assert steady.rows[0].is_steady and cw.plan(model, x).rows[0].is_steady
    assert "~" not in str(steady)


def test_layers_are_measured_for_as_long_as_asked():
    model = nn.Sequential(nn.Linear(16, 16))
    cw.sparsify(model, "block:8", density=0.5)
    start = perf_counter()
    cw.plan(model, torch.ones(1, 16), seconds=0.5, cache=False)
    # A hundred rounds would take a tenth of a second; a busy machine is believed slower than it is, and asked less.
    assert perf_counter() - start > 0.15
