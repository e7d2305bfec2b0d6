"""Both storages train the same: the same masks, and the same weights to float tolerance."""

import copy
import io
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import cutwork as cw
from cutwork.layers.compressed import CompressedLinear
from cutwork.methods import Method

PATTERNS = ["block:4", "block:5x3", "vector:4", "shuffled:4"]
# Each moves several times in the steps of these tests.
METHODS: dict[str, Method] = {
    "static": cw.Static(),
    "gradual": cw.Gradual(every=2, until=7),
    "gradual by taylor": cw.Gradual(every=2, until=7, drop=cw.taylor),
    "set": cw.set_(every=2, until=8),
    "rigl": cw.RigL(every=2, until=8),
    "rigl by estimate": cw.RigL(every=2, until=8, estimate=True),
    "granet": cw.GraNet(every=2, until=8, thin_until=5),
    "srigl": cw.SRigL(every=2, until=8),
    "switch": cw.Switch(cw.RigL(every=2, until=7), sparse_from=2, dense_from=7),
}
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
}
STEPS = 9


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(23, 32), nn.GELU(), nn.Linear(32, 17), nn.GELU(), nn.Linear(17, 6)).double()


def batch_of(step: int, size: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(size, 23, generator=generator).double(), torch.randint(0, 6, (size,), generator=generator)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = batch_of(step)
    return nn.functional.cross_entropy(model(x), y)


def prepared(storage: str, pattern: str, method: Method, optimizer_name: str):
    model = build()
    sparsifier = cw.sparsify(model, pattern, density=0.3, method=method, storage=storage, track=True)
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    sparsifier.attach(optimizer)
    return model, sparsifier, optimizer


def trained(storage: str, pattern: str, method: Method, optimizer_name: str = "adamw", steps: int = STEPS):
    model, sparsifier, optimizer = prepared(storage, pattern, method, optimizer_name)
    masks = []
    for step in range(steps):
        optimizer.zero_grad()
        # The loss, and with it the graph of the old size, lives on into the next step, as in everybody's loop.
        loss = loss_of(model, step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        masks.append({name: layer.sparsity.mask.clone() for name, layer in sparsifier.layers.items()})
    return model, sparsifier, optimizer, masks


def weight_of(layer: nn.Module) -> Tensor:
    return layer.sparsity.matrix(layer.trained)


def check_same_training(one, other) -> None:
    (model, sparsifier, optimizer, masks), (twin, twins_sparsifier, twins_optimizer, twins_masks) = one, other
    for step, (seen, expected) in enumerate(zip(masks, twins_masks, strict=True), 1):
        for name in expected:
            assert torch.equal(seen[name], expected[name]), f"{name} after step {step}"
    for name, layer in sparsifier.layers.items():
        twins_layer = twins_sparsifier.layers[name]
        torch.testing.assert_close(weight_of(layer), weight_of(twins_layer), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(layer.bias, twins_layer.bias, rtol=1e-6, atol=1e-9)
        state, expected = optimizer.state[layer.trained], twins_optimizer.state[twins_layer.trained]
        for key, value in state.items():
            if value.shape == layer.trained.shape:
                dense = twins_layer.sparsity.matrix(expected[key])
                torch.testing.assert_close(layer.sparsity.matrix(value), dense, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss_of(model, 99), loss_of(twin, 99), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method_name", METHODS)
def test_both_storages_give_the_same_training(method_name, pattern, optimizer_name):
    method = METHODS[method_name]
    compressed = trained("compressed", pattern, method, optimizer_name)
    dense = trained("dense", pattern, method, optimizer_name)
    check_same_training(compressed, dense)
    if method_name != "static":
        assert any(sum(seen.turnovers) for seen in dense[1].exploration.values()) or method_name == "switch"
    sizes = {tuple(len(mask.nonzero()) for mask in masks.values()) for masks in compressed[3]}
    assert len(sizes) > 1 or method_name not in {"gradual", "granet", "switch"}
