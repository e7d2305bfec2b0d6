import pytest
import torch
import torch.nn.functional as F

from cutwork.ops.activations import ACTIVATIONS, activate
from cutwork.ops.block_linear import block_linear, input_gradient, linear, weight_gradient
from cutwork.patterns import parse
from cutwork.sparsity.compressed import index_of

PATTERNS = ["block:4", "block:5x3", "vector:4", "block:64", "shuffled:4"]


def problem(pattern, dtype=torch.float64, tokens=6):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(13, 10, generator=generator, dtype=dtype)
    mask = parse(pattern).project(weight.abs(), 0.4)
    index = index_of(mask, parse(pattern))
    x = torch.randn(tokens, 10, generator=generator, dtype=dtype, requires_grad=True)
    bias = torch.randn(13, generator=generator, dtype=dtype, requires_grad=True)
    return weight * mask, index, index.gather(weight * mask).requires_grad_(), x, bias


def at(index):
    return index.ptr, index.col, index.order


@pytest.mark.parametrize("compiled", [False, True], ids=["directly", "as an operator"])
@pytest.mark.parametrize("before", ACTIVATIONS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_is_a_linear_layer_with_the_masked_weight(pattern, before, compiled, monkeypatch):
    if compiled:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    weight, index, values, x, bias = problem(pattern)
    weight.requires_grad_()
    residual = torch.randn(6, 13, dtype=torch.float64, requires_grad=True)
    y = linear(x, values, *at(index), bias, outputs=13, residual=residual, before=before)
    expected = F.linear(activate(before, x), weight, bias) + residual
    torch.testing.assert_close(y, expected)
    grads = torch.autograd.grad(y.square().sum(), (x, values, bias, residual))
    dense = list(torch.autograd.grad(expected.square().sum(), (x, weight, bias, residual)))
    dense[1] = index.gather(dense[1])
    for found, wanted in zip(grads, dense, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("after", ACTIVATIONS)
@pytest.mark.parametrize("grad", [False, True])
def test_an_activation_may_follow_with_and_without_gradients(after, grad):
    weight, index, values, x, bias = problem("block:4")
    with torch.set_grad_enabled(grad):
        y = linear(x, values, *at(index), bias, outputs=13, after=after)
    torch.testing.assert_close(y, activate(after, F.linear(x, weight, bias)))
    assert y.requires_grad == grad


def test_an_input_may_have_any_number_of_dimensions():
    weight, index, values, _, bias = problem("block:4")
    for shape in ((10,), (6, 10), (2, 3, 10), (0, 10)):
        source = torch.randn(shape, dtype=torch.float64)
        residual = torch.randn(*shape[:-1], 13, dtype=torch.float64)
        y = linear(source, values, *at(index), bias, outputs=13, residual=residual)
        torch.testing.assert_close(y, F.linear(source, weight, bias) + residual)


def test_under_autocast_it_computes_as_a_linear_layer_does():
    weight, index, values, x, bias = problem("block:4", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, values, *at(index), bias, outputs=13)
        expected = F.linear(x, weight, bias)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    y.float().sum().backward()
    assert values.grad.dtype == torch.float32


def test_an_activation_that_does_not_exist_is_named():
    _, index, values, x, bias = problem("block:4")
    with pytest.raises(ValueError, match=r"unknown activation 'swish'.*'silu'"):
        linear(x, values, *at(index), bias, outputs=13, before="swish")


@pytest.mark.parametrize("pattern", ["block:4", "vector:4", "shuffled:4"])
def test_gradients_of_every_operator_are_right_to_second_order(pattern):
    _, index, values, x, bias = problem(pattern, tokens=2)
    dy = torch.randn(2, 13, dtype=torch.float64, requires_grad=True)
    # What hangs over an edge has no meaning, so the check must not move it.
    inside = index.gather(torch.ones(13, 10, dtype=torch.float64))
    cases = [
        (lambda x, v, b: block_linear(x, v * inside, *at(index), b, None, 13, "none", "none"), (x, values, bias)),
        (lambda x, v, b: linear(x, v * inside, *at(index), b, outputs=13), (x, values, bias)),
        (lambda d, v: input_gradient(d, v * inside, *at(index), None, 10, "none"), (dy, values)),
        (lambda d, x: weight_gradient(d, x, *at(index), index.rows, index.columns, "none"), (dy, x)),
    ]
    for function, inputs in cases:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_second_derivatives_stop_at_a_fused_activation_and_say_so():
    _, index, values, x, _ = problem("block:4")
    y = linear(x, values, *at(index), outputs=13, before="gelu")
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(ValueError, match="second derivatives stop at a fused activation"):
        dx.sum().backward()


def test_gradients_that_nobody_needs_are_not_computed():
    _, index, values, x, _ = problem("block:4")
    linear(x.detach(), values, *at(index), outputs=13).sum().backward()
    assert values.grad is not None
    assert x.grad is None
    linear(x, values.detach(), *at(index), outputs=13).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("pattern", ["block:4", "shuffled:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_keep_the_rules_of_torch_library(dtype, pattern):
    _, index, values, x, bias = problem(pattern, dtype)
    dy = torch.randn(6, 13, dtype=dtype, requires_grad=True)
    torch.library.opcheck(block_linear, (x, values, *at(index), bias, dy, 13, "gelu", "none"))
    torch.library.opcheck(input_gradient, (dy, values, *at(index), None, 10, "none"))
    torch.library.opcheck(weight_gradient, (dy, x, *at(index), 4, index.columns, "none"))
    dy, x, values = dy.detach(), x.detach(), values.detach()
    torch.library.opcheck(input_gradient, (dy, values, *at(index), x, 10, "gelu"))
    torch.library.opcheck(weight_gradient, (dy, x, *at(index), 4, index.columns, "gelu"))
