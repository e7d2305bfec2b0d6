import math

import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.patterns import Block, TapBlock, parse


def conv(outputs, channels, kernel, **options) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, outputs, kernel, **options)).double()


@pytest.mark.parametrize(("outputs", "channels", "kernel", "tile"), [(8, 8, 3, 4), (10, 7, 3, 4), (6, 9, (2, 3), 3)])
def test_a_supermask_of_a_convolution_is_that_of_superblock(outputs, channels, kernel, tile):
    """Its scores lie on a grid over all four dimensions, of which the two of the kernel are one tile."""
    model = conv(outputs, channels, kernel)
    cw.sparsify(model, f"block:{tile}-taps", sparsity=0.6, method=cw.Supermask(count="reference"))
    layer, x = model[0], torch.randn(2, channels, 6, 6).double()
    grid = [math.ceil(size / tile) for size in layer.weight.shape]
    assert math.prod(grid) == layer.sparsity.scores.numel()
    scores = layer.sparsity.scores.detach().clone().view(grid).requires_grad_()
    threshold = scores.flatten().kthvalue(1 + round(0.01 * 60.0 * (scores.numel() - 1))).values.detach()
    gate = (scores >= threshold).double() + scores - scores.detach()
    for dim, size in enumerate(layer.weight.shape):
        gate = gate.repeat_interleave(tile, dim=dim).narrow(dim, 0, size)
    assert torch.equal(layer.sparsity.mask, gate.detach() > 0.5)
    weight = layer.weight.detach().clone().requires_grad_()
    nn.functional.conv2d(x, weight * gate, layer.bias).square().sum().backward()
    model(x).square().sum().backward()
    torch.testing.assert_close(layer.sparsity.scores.grad, scores.grad.view(layer.sparsity.scores.shape))
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    bound = 1 / math.sqrt(scores.numel() / grid[0])
    assert layer.sparsity.scores.abs().max() <= bound
    assert layer.sparsity.scores.abs().max() > bound / 2


def test_every_layer_gets_the_taps_of_its_kernel():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, (5, 1)), nn.Flatten(), nn.Linear(8, 8)
    )
    sparsifier = cw.sparsify(model, "block:4x2-taps", density=0.5)
    found = [str(layer.sparsity.pattern) for layer in sparsifier.layers.values()]
    assert found == ["block:4x2-9taps", "block:4x2", "block:4x2-5taps", "block:4x2"]
    for layer in sparsifier.layers.values():
        taps = layer.sparsity.mask.flatten(1).view(*layer.sparsity.mask.shape[:2], -1)
        assert torch.equal(taps.any(2), taps.all(2))


def test_grouped_convolutions_are_tiled_within_their_groups():
    model = conv(8, 8, 3, groups=2)
    cw.sparsify(model, "block:4-taps", density=0.5)
    mask = model[0].sparsity.mask.flatten(2).all(2)
    assert mask.shape == (8, 4)
    assert mask[:4].all() != mask[4:].all()


@pytest.mark.parametrize("channels", [8, 7])
def test_compressed_storage_computes_the_same(channels):
    model, x = conv(10, channels, 3, padding=1), torch.randn(2, channels, 5, 5).double()
    cw.sparsify(model, "block:4-taps", density=0.4)
    expected = model(x)
    cw.pack(model, forms="tiles")
    assert "Compressed" in type(model[0]).__name__
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("storage", ["dense", "compressed"])
@pytest.mark.parametrize("method", ["rigl", "set", "srigl", "granet"])
def test_it_moves_and_is_saved(method, storage, tmp_path):
    found = []
    for _ in range(2):
        model = conv(16, 12, 3)
        chosen = {"rigl": cw.RigL, "set": cw.set_, "srigl": cw.SRigL, "granet": cw.GraNet}[method](
            every=2, until=6, fraction=0.9
        )
        sparsifier = cw.sparsify(
            model, "block:2-taps", density=0.4, method=chosen, storage=storage, track=True, steps=6
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        sparsifier.attach(optimizer)
        found.append((model, sparsifier, optimizer))
    (model, sparsifier, optimizer), (other, *rest) = found
    for step in range(5):
        optimizer.zero_grad()
        x = torch.randn(2, 12, 5, 5, generator=torch.Generator().manual_seed(step)).double()
        (model(x) - 3 * x[:, :1, 1:4, 1:4].sign()).square().mean().backward()
        optimizer.step()
        mask = model[0].sparsity.mask.flatten(2)
        assert torch.equal(mask.any(2), mask.all(2))
    assert any(sparsifier.exploration["0"].turnovers)
    cw.save(model, tmp_path / "run", sparsifier=sparsifier, optimizer=optimizer)
    cw.load(tmp_path / "run", other, sparsifier=rest[0], optimizer=rest[1])
    assert torch.equal(other(x), model(x))
    assert other[0].sparsity.pattern == TapBlock(2, 2, 9)


def test_the_kernel_must_be_known_to_a_bare_matrix():
    with pytest.raises(ValueError, match=r"block:4-taps has to know the kernel; write for example 'block:16-9taps'"):
        parse("block:4-taps").project(torch.rand(8, 18), 0.5)
    with pytest.raises(ValueError, match="needs inputs in 9 taps of equally many channels; got 20"):
        parse("block:4-9taps").project(torch.rand(8, 20), 0.5)
    assert parse("block:4x2-taps").for_kernel(1) == Block(4, 2)
    assert str(parse("block:4x2-taps").for_kernel(9)) == "block:4x2-9taps"
    assert parse("block:4-9taps").for_kernel(4) == TapBlock(4, 4, 9)
    for text in ("block:4-0taps", "block:0-taps"):
        with pytest.raises(ValueError, match="at least one row, column and tap"):
            parse(text)
