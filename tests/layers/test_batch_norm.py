import copy

import pytest
import torch
from torch import nn

from cutwork.layers.batch_norm import FusedBatchNorm, fuse_norm
from cutwork.ops.activations import activate

OPTIONS = [
    {},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"momentum": 0.3, "eps": 1e-2},
]


def pair(kind=nn.BatchNorm2d, after="relu", **options):
    """Return a batch norm and its fused form."""
    torch.manual_seed(0)
    plain = kind(6, **options)
    if plain.affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    fused = copy.deepcopy(plain)
    fuse_norm(fused, after)
    return plain, fused


def assert_alike(plain, fused, x, residual=None, after="relu"):
    inputs = [x.requires_grad_(), *plain.parameters()]
    others = [x, *fused.parameters()]
    if residual is not None:
        inputs.append(residual.requires_grad_())
        others.append(residual)
    y = plain(x) if residual is None else plain(x) + residual
    expected, found = activate(after, y), fused(x, residual)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(fused.state_dict()[key], value, rtol=1e-4, atol=1e-5)
    if y.requires_grad:
        dy = torch.randn_like(y)
        pairs = zip(torch.autograd.grad(expected, inputs, dy), torch.autograd.grad(found, others, dy), strict=True)
        for wanted, grad in pairs:
            torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_trains_and_evaluates_as_its_parts(options, has_residual, dtype):
    plain, fused = (module.to(dtype) for module in pair(**options))
    assert isinstance(fused, FusedBatchNorm)
    for step in range(3):
        x = torch.randn(5, 6, 4, 3, dtype=dtype) + 0.1 * step
        assert_alike(plain, fused, x, torch.randn_like(x) if has_residual else None)
    x = torch.randn(5, 6, 4, 3, dtype=dtype)
    assert_alike(plain.eval(), fused.eval(), x, torch.randn_like(x) if has_residual else None)


@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.BatchNorm1d, (7, 6)), (nn.BatchNorm1d, (3, 6, 5)), (nn.BatchNorm3d, (2, 6, 3, 2, 4))]
)
@pytest.mark.parametrize("after", ["none", "relu", "gelu", "silu"])
def test_it_takes_what_its_kind_takes(kind, shape, after):
    assert_alike(*pair(kind, after), torch.randn(shape), after=after)


def test_a_residual_that_must_be_broadcast_is_added_as_by_pytorch():
    plain, fused = pair()
    assert_alike(plain, fused, torch.randn(5, 6, 4, 3), torch.randn(6, 1, 1))


def test_autocast_gives_what_it_gives_without_fusion():
    plain, fused = pair()
    x = torch.randn(5, 6, 4, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused(x), plain(x).relu())


def test_an_input_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"BatchNorm2d got an input of shape \[5, 6\]; it must have 4 dimensions"):
        pair()[1](torch.randn(5, 6))


def test_one_value_a_channel_is_refused_as_by_pytorch():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        pair()[1](torch.randn(1, 6, 1, 1))


@pytest.mark.parametrize("options", [{}, {"momentum": None}], ids=str)
def test_it_compiles_whole(options):
    plain, fused = pair(**options)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 6, 4, 3)
    torch.testing.assert_close(compiled(x, x), (plain(x) + x).relu(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fused.running_var, plain.running_var)


def test_converting_batch_norms_leaves_it_and_what_it_does_alone():
    fused = nn.Sequential(pair()[1])
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(fused)[0], FusedBatchNorm)
