import pytest
import torch
import torch.nn.functional as F

from cutwork.ops.block_linear import block_linear, input_gradient, weight_gradient
from cutwork.patterns import parse
from cutwork.topology import Topology

PATTERNS = ["block:4", "block:5x3", "vector:4", "block:64"]


def problem(pattern, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(13, 10, generator=generator, dtype=dtype)
    mask = parse(pattern).project(weight.abs(), 0.4)
    index = Topology.from_mask(mask, parse(pattern))
    x = torch.randn(6, 10, generator=generator, dtype=dtype, requires_grad=True)
    bias = torch.randn(13, generator=generator, dtype=dtype, requires_grad=True)
    return weight * mask, index, index.gather(weight * mask).requires_grad_(), x, bias


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_is_a_linear_layer_with_the_masked_weight(pattern):
    weight, index, values, x, bias = problem(pattern)
    weight.requires_grad_()
    y = block_linear(x, values, index.ptr, index.col, bias, 13)
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(y, expected)
    grads = torch.autograd.grad(y.square().sum(), (x, values, bias))
    dense = torch.autograd.grad(expected.square().sum(), (x, weight, bias))
    torch.testing.assert_close(grads[0], dense[0])
    torch.testing.assert_close(grads[1], index.gather(dense[1]))
    torch.testing.assert_close(grads[2], dense[2])


@pytest.mark.parametrize("pattern", ["block:4", "vector:4"])
def test_gradients_of_every_operator_are_right_to_second_order(pattern):
    _, index, values, x, bias = problem(pattern)
    at = (index.ptr, index.col)
    dy = torch.randn(6, 13, dtype=torch.float64, requires_grad=True)
    # What hangs over an edge has no meaning, so the check must not move it.
    inside = index.gather(torch.ones(13, 10, dtype=torch.float64))
    cases = [
        (lambda x, v, b: block_linear(x, v * inside, *at, b, 13), (x, values, bias)),
        (lambda d, v: input_gradient(d, v * inside, *at, 10), (dy, values)),
        (lambda d, x: weight_gradient(d, x, *at, index.rows, index.columns), (dy, x)),
    ]
    for function, inputs in cases:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_gradients_that_nobody_needs_are_not_computed():
    _, index, values, x, _ = problem("block:4")
    y = block_linear(x.detach(), values, index.ptr, index.col, None, 13)
    y.sum().backward()
    assert values.grad is not None
    block_linear(x, values.detach(), index.ptr, index.col, None, 13).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_keep_the_rules_of_torch_library(dtype):
    _, index, values, x, bias = problem("block:4", dtype)
    dy = torch.randn(6, 13, dtype=dtype, requires_grad=True)
    torch.library.opcheck(block_linear, (x, values, index.ptr, index.col, bias, 13))
    torch.library.opcheck(input_gradient, (dy, values, index.ptr, index.col, 10))
    torch.library.opcheck(weight_gradient, (dy, x, index.ptr, index.col, 4, 4))
