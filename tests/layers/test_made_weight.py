"""Whoever reads the weight of a layer that stores none gets it, and cannot write it."""

import copy
import pickle

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.layers import made_weight

LAYERS = {"linear": lambda: nn.Linear(20, 12), "conv": lambda: nn.Conv2d(6, 8, 3)}
PATTERNS = ["block:4", "shuffled:4", "block:5x3"]


def compressed(layer="linear", pattern="block:4", **options):
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[layer]())
    sparsifier = cw.sparsify(model, pattern, density=0.4, storage="compressed", **options)
    return model, sparsifier


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("layer", LAYERS)
def test_it_is_the_weight_of_the_dense_layer(layer, pattern):
    model, _ = compressed(layer, pattern)
    weight = model[0].weight.detach().clone()
    cw.bake(model)
    assert torch.equal(weight, model[0].weight) and type(weight) is torch.Tensor


def test_dtype_device_and_shape_are_free(monkeypatch):
    model, _ = compressed()
    monkeypatch.setattr(type(model[0]), "_form_weight", lambda layer: pytest.fail("the numbers were made"))
    weight = model[0].weight
    assert weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.shape == (12, 20)
    assert weight.size(1) == 20 and weight.numel() == 240 and weight.ndim == 2 and len(weight) == 12
    assert isinstance(weight, torch.Tensor) and weight.requires_grad and weight.is_floating_point()


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_a_gradient_goes_through_it_to_what_is_kept(storage):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 12))
    cw.sparsify(model, "block:4", density=0.4, storage=storage)
    layer, x = model[0], torch.randn(5, 20)
    weight = layer.weight if storage == "compressed" else layer.sparsity(layer.weight)
    (layer(x).square().sum() + weight.square().sum() + nn.functional.linear(x, weight).sum()).backward()
    gradient = layer.sparsity.matrix(layer.trained.grad)
    dense = nn.Linear(20, 12)
    with torch.no_grad():
        dense.weight.copy_(layer.sparsity.matrix(layer.trained))
        dense.bias.copy_(layer.bias)
    (dense(x).square().sum() + dense.weight.square().sum() + nn.functional.linear(x, dense.weight).sum()).backward()
    torch.testing.assert_close(gradient, dense.weight.grad * layer.sparsity.mask)


def test_a_move_hears_of_what_goes_through_the_weight():
    masks = []
    for storage in ("dense", "compressed"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 12)).double()
        sparsifier = cw.sparsify(model, "block:4", density=0.4, method=cw.RigL(every=1, until=9), storage=storage)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparsifier.attach(optimizer)
        for _ in range(4):
            optimizer.zero_grad()
            layer, x = model[0], torch.randn(5, 20).double()
            weight = layer.weight if storage == "compressed" else layer.sparsity(layer.weight)
            (layer(x).square().sum() + (weight @ weight.T).sum() * 10).backward()
            optimizer.step()
        masks.append(model[0].sparsity.mask)
    assert torch.equal(*masks)


@pytest.mark.parametrize(
    "write",
    [
        lambda layer: layer.weight.data.zero_(),
        lambda layer: layer.weight.detach().copy_(torch.ones(12, 20)),
        lambda layer: layer.weight.mul_(2),
        lambda layer: layer.weight.__setitem__(0, 1.0),
        lambda layer: layer.weight.T.fill_(1),
        lambda layer: layer.weight.data[0].fill_(1),
        lambda layer: nn.init.normal_(layer.weight),
        lambda layer: setattr(layer.weight, "data", torch.ones(12, 20)),
        lambda layer: setattr(layer, "weight", torch.ones(12, 20)),
        lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(12, 20))),
        lambda layer: torch.mul(torch.ones(12, 20), 2, out=layer.weight),
        lambda layer: layer.weight.requires_grad_(False),
    ],
)
@pytest.mark.parametrize("kind", ["compressed", "int8"])
def test_writing_it_is_an_error(write, kind):
    model, _ = compressed()
    if kind == "int8":
        cw.pack(model, forms="tiles-int8")
    x = torch.randn(3, 20)
    with torch.no_grad():
        before = model(x)
        with pytest.raises(ValueError, match=r"weight of an? (compressed|int8) linear layer of 20 inputs .* read-only"):
            write(model[0])
        assert torch.equal(model(x), before)


def test_of_an_int8_layer_it_is_what_was_rounded():
    model, _ = compressed(pattern="shuffled:4")
    weight = model[0].weight.detach().clone()
    cw.pack(model, forms="tiles-int8")
    assert model[0].weight.dtype == torch.float32 and model[0].weight.shape == (12, 20)
    rounded = model[0].weight.clone()
    assert torch.equal(rounded == 0, (weight / weight.abs().amax(1, keepdim=True) * 127).round() == 0)
    torch.testing.assert_close(rounded, weight, rtol=0, atol=float(weight.abs().max()) / 127)


class Reader(nn.Module):
    """As T5 does it: the parent asks the weight of a layer for its dtype."""

    def __init__(self):
        super().__init__()
        self.wo = nn.Linear(20, 12)

    def forward(self, x):
        if isinstance(self.wo.weight, torch.Tensor) and x.dtype != self.wo.weight.dtype:
            x = x.to(self.wo.weight.dtype)
        return self.wo(x) + self.wo.weight.sum()


@pytest.mark.parametrize("compiler", [None, "aot_eager"])
def test_a_parent_that_reads_it_computes_the_same(compiler):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Reader(), torch.randn(3, 20, dtype=torch.float64)
    cw.sparsify(model, "block:4", density=0.4)
    model.wo.weight.data.mul_(model.wo.sparsity.mask)
    expected = model(x)
    cw.pack(model, forms="tiles")
    run = torch.compile(model, backend=compiler, fullgraph=True) if compiler else model
    torch.testing.assert_close(run(x), expected)


def test_it_travels_as_plain_numbers():
    model, _ = compressed()
    weight = model[0].weight
    for other in (pickle.loads(pickle.dumps(weight)), copy.deepcopy(weight.detach())):
        assert torch.equal(torch.as_tensor(other), weight)
    assert not isinstance(torch.stack([weight, weight]), made_weight.MadeWeight)
    assert weight.detach().numpy().shape == (12, 20)
