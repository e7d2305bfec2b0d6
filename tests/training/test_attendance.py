import pytest
import torch
from torch import nn

import cutwork as cw


def prepared(method="static", pattern="unstructured", density: float | None = 0.25, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    return model, cw.sparsify(model, pattern, density=density, method=method, **options)


def train(model, optimizer, steps=1):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_training_for_long_with_nobody_attached_is_said_once(storage, caplog, monkeypatch):
    monkeypatch.setattr("cutwork.training.attendance.MANY_STEPS", 3)
    model, _ = prepared(cw.set_(every=2, until=9), "block:4", storage=storage)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, 2)
    assert not caplog.text
    train(model, optimizer, 3)
    assert caplog.text.count("0 was updated 3 times, but no sparsifier is attached, so its mask does not move") == 1
    for method, is_attached in ((cw.Static(), False), (cw.set_(every=2, until=9), True)):
        caplog.clear()
        model, sparsifier = prepared(method, "block:4", storage=storage)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if is_attached:
            sparsifier.attach(optimizer)
        train(model, optimizer, 5)
        assert not caplog.text
