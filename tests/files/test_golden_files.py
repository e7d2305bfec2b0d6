"""Files of earlier versions load, compute what they did, and train on."""

import json

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers.swap import sparse_layers

from .runs import GOLDEN, METHODS, OPTIMIZERS, Attends, attach, train


def golden_model():
    return nn.Sequential(nn.Linear(8, 8), Attends(), nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)).eval()


def test_the_golden_file_of_version_1_loads():
    model = golden_model()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    checkpoint = cw.load(GOLDEN, model)
    assert {name: str(record) for name, record in cw.describe(GOLDEN).layers.items()} == {
        "0": "learned block:2 at density 0.5, score_range=[-1.0, 1.0], dense_weight_gradient=False, bits=3",
        "1.attention.q_proj": "fixed unstructured at density 0.25, estimate=False",
        "2": "reprojected 2:4 at density 0.5, decay=0.0002, decoupled=False",
        "3": "fixed shuffled:2x4 at density 0.5, estimate=True",
    }
    assert list(checkpoint.layers) == list(cw.describe(GOLDEN).layers)
    assert checkpoint.extra["epoch"] == 2
    assert model[0].sparsity.score_range == (-1.0, 1.0)
    with torch.no_grad():
        y = model(torch.arange(8.0)[None] / 8).flatten()
    torch.testing.assert_close(y, torch.tensor(json.loads(GOLDEN.with_suffix(".json").read_text())["y"]))


def compressed_golden_model():
    return nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 8, bias=False))


def test_the_golden_file_of_version_2_loads():
    path = GOLDEN.with_name("v2.safetensors")
    model = compressed_golden_model()
    layers = cw.load(path, model).layers
    assert {name: str(record) for name, record in cw.describe(path).layers.items()} == {
        "0": "fixed block:4x3 at density 0.5, estimate=True, compressed",
        "2": "fixed shuffled:4x1 at density 0.5, estimate=True, compressed",
        "4": "fixed unstructured at density 0.5, estimate=True",
    }
    sparsifier = cw.Sparsifier(layers, cw.RigL(every=2, until=9, estimate=True))
    optimizer = attach(sparsifier, model)
    cw.load(path, model, sparsifier=sparsifier, optimizer=optimizer)
    assert sparsifier.steps_done == 3
    y = model(torch.arange(8.0)[None] / 8).flatten()
    torch.testing.assert_close(y, torch.tensor(json.loads(path.with_suffix(".json").read_text())["y"]))
    train(model, optimizer, 3, 5)


def low_golden_model():
    return nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 8, bias=False)).eval()


def test_the_golden_file_of_version_3_loads():
    path = GOLDEN.with_name("v3.safetensors")
    model = low_golden_model()
    cw.load(path, model)
    assert {name: str(record) for name, record in cw.describe(path).layers.items()} == {
        "0": "fixed block:4x3 at density 0.5, int8",
        "2": "fixed shuffled:4x1 at density 0.5, int8",
        "4": "fixed block:2 at density 0.5, estimate=False, compressed in bfloat16",
    }
    with torch.no_grad():
        y = model(torch.arange(8.0)[None] / 8).flatten()
    torch.testing.assert_close(
        y, torch.tensor(json.loads(path.with_suffix(".json").read_text())["y"]), rtol=1e-2, atol=1e-3
    )


def test_training_goes_on_from_the_golden_file():
    model = golden_model()
    layers = cw.load(GOLDEN, model).layers
    methods = [cw.Supermask(), METHODS["rigl"], cw.srste(), METHODS["rigl-estimate"]]
    sparsifiers = [
        cw.Sparsifier({name: layer}, method, track=place == 1)
        for place, ((name, layer), method) in enumerate(zip(layers.items(), methods, strict=True))
    ]
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    for sparsifier in sparsifiers:
        sparsifier.attach(optimizer)
    cw.load(GOLDEN, model, sparsifier=sparsifiers, optimizer=optimizer)
    assert [sparsifier.steps_done for sparsifier in sparsifiers] == [2, 2, 2, 2]
    assert len(sparsifiers[1].exploration["1.attention.q_proj"].turnovers) == 1
    recorded = json.loads(GOLDEN.with_suffix(".json").read_text())
    assert optimizer.param_groups[0]["lr"] == 0.05
    momentum = [float(state["momentum_buffer"].double().abs().sum()) for state in optimizer.state.values()]
    assert momentum == pytest.approx(recorded["momentum"], rel=1e-6)
    assert set(sparse_layers(model)) == set(layers)
