import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from cutwork.ops.activations import activate
from cutwork.ops.block_conv2d import block_conv2d, conv2d, input_gradient, weight_gradient
from cutwork.ops.block_linear import linear
from cutwork.patterns import parse
from cutwork.sparsity.compressed import index_of
from cutwork.sparsity.layout import Layout

PATTERNS = ["block:4", "block:5x3", "vector:4", "block:64", "shuffled:4"]


def problem(pattern, *, outputs=12, channels=6, kernel=(3, 3), groups=1, size=(7, 6), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (outputs, channels // groups, *kernel)
    weight = Layout(shape).to_matrix(torch.randn(shape, generator=generator, dtype=dtype))
    mask = parse(pattern).project(weight.abs(), 0.4)
    index = index_of(mask, parse(pattern))
    values = index.gather(weight * mask).requires_grad_()
    x = torch.randn(2, channels, *size, generator=generator, dtype=dtype, requires_grad=True)
    bias = torch.randn(outputs, generator=generator, dtype=dtype, requires_grad=True)
    return Layout(shape).from_matrix(weight * mask).requires_grad_(), index, values, x, bias


def at(index):
    return index.ptr, index.col, index.order


def check(pattern, groups=1, kernel=(3, 3), **geometry):
    weight, index, values, x, bias = problem(pattern, groups=groups, kernel=kernel)
    y = conv2d(x, values, *at(index), bias, outputs=12, kernel_size=kernel, groups=groups, **geometry)
    expected = F.conv2d(x, weight, bias, groups=groups, **geometry)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    grads = torch.autograd.grad(y.square().sum(), (x, values, bias))
    dense = list(torch.autograd.grad(expected.square().sum(), (x, weight, bias)))
    dense[1] = index.gather(Layout.of(dense[1]).to_matrix(dense[1]))
    for found, wanted in zip(grads, dense, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("compiled", [False, True], ids=["directly", "as an operator"])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 4)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_is_a_convolution_with_the_masked_weight(pattern, kernel, compiled, monkeypatch):
    if compiled:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    check(pattern, kernel=kernel)


@pytest.mark.parametrize("pattern", ["block:4", "shuffled:4"])
def test_every_stride_padding_dilation_and_number_of_groups_is_right(pattern):
    pairs = [(1, 1), (2, 1), (3, 2)]
    for stride, padding, dilation, groups in itertools.product(pairs, [(0, 0), (1, 2)], [(1, 1), (2, 1)], [1, 2, 3, 6]):
        check(pattern, stride=stride, padding=padding, dilation=dilation, groups=groups)


@pytest.mark.parametrize("after", ["none", "relu", "gelu"])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)])
@pytest.mark.parametrize("grad", [False, True])
def test_an_activation_may_follow_with_and_without_gradients(after, kernel, grad):
    weight, index, values, x, bias = problem("block:4", kernel=kernel)
    with torch.set_grad_enabled(grad):
        y = conv2d(x, values, *at(index), bias, outputs=12, kernel_size=kernel, after=after)
    torch.testing.assert_close(y, activate(after, F.conv2d(x, weight, bias)))
    assert y.requires_grad == grad


def test_an_activation_in_a_compiled_model_is_part_of_the_operator(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    weight, index, values, x, bias = problem("block:4")
    with torch.no_grad():
        y = conv2d(x, values, *at(index), bias, outputs=12, kernel_size=(3, 3), after="silu")
    torch.testing.assert_close(y, F.silu(F.conv2d(x, weight, bias)))


def test_a_single_image_needs_no_batch_and_any_memory_format_will_do():
    weight, index, values, x, _ = problem("block:4")
    expected = F.conv2d(x, weight, padding=1)
    for source in (x, x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        y = conv2d(source, values, *at(index), outputs=12, kernel_size=(3, 3), padding=(1, 1))
        torch.testing.assert_close(y, expected)
    y = conv2d(x[0], values, *at(index), outputs=12, kernel_size=(3, 3), padding=(1, 1))
    torch.testing.assert_close(y, expected[0])


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)])
def test_under_autocast_it_computes_as_a_convolution_does(kernel):
    weight, index, values, x, bias = problem("block:4", kernel=kernel, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv2d(x, values, *at(index), bias, outputs=12, kernel_size=kernel)
        expected = F.conv2d(x, weight, bias)
    assert y.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected, rtol=5e-2, atol=5e-2)
    y.float().sum().backward()
    assert values.grad.dtype == torch.float32


@pytest.mark.parametrize(("pattern", "groups"), [("block:4", 1), ("vector:4", 2), ("shuffled:4", 1)])
def test_gradients_of_every_operator_are_right_to_second_order(pattern, groups):
    _, index, values, x, bias = problem(pattern, outputs=4, channels=2, groups=groups, size=(3, 4))
    geometry = ([3, 3], [2, 1], [1, 1], [1, 1], groups)
    dy = torch.randn(2, 4, 2, 4, dtype=torch.float64, requires_grad=True)
    # What hangs over an edge has no meaning, so the check must not move it.
    inside = index.gather(torch.ones(index.shape, dtype=torch.float64))
    options = {"outputs": 4, "kernel_size": (3, 3), "stride": (2, 1), "padding": (1, 1), "groups": groups}
    cases = [
        (lambda x, v, b: block_conv2d(x, v * inside, *at(index), b, 4, *geometry, "none"), (x, values, bias)),
        (lambda x, v, b: conv2d(x, v * inside, *at(index), b, **options), (x, values, bias)),
        (lambda d, v: input_gradient(d, v * inside, *at(index), [2, 3, 4], *geometry), (dy, values)),
        (lambda d, x: weight_gradient(d, x, *at(index), index.rows, index.columns, *geometry), (dy, x)),
    ]
    for function, inputs in cases:
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


def test_an_operator_with_an_activation_has_no_gradient_and_says_so():
    _, index, values, x, _ = problem("block:4")
    y = block_conv2d(x, values, *at(index), None, 12, [3, 3], [1, 1], [0, 0], [1, 1], 1, "relu")
    with pytest.raises(ValueError, match="apply the activation apart"):
        y.sum().backward()


def test_gradients_that_nobody_needs_are_not_computed():
    _, index, values, x, _ = problem("block:4")
    conv2d(x.detach(), values, *at(index), outputs=12, kernel_size=(3, 3)).sum().backward()
    assert x.grad is None
    assert values.grad is not None


@pytest.mark.parametrize("pattern", ["block:4", "shuffled:4"])
def test_the_operators_obey_the_rules_for_operators(pattern):
    _, index, values, x, bias = problem(pattern, dtype=torch.float32)
    geometry = ([3, 3], [2, 1], [1, 1], [1, 1], 1)
    dy = torch.randn(2, 12, 4, 6, requires_grad=True)
    torch.library.opcheck(block_conv2d, (x, values, *at(index), bias, 12, *geometry, "none"))
    torch.library.opcheck(input_gradient, (dy, values, *at(index), [6, 7, 6], *geometry))
    torch.library.opcheck(weight_gradient, (dy, x, *at(index), 4, index.columns, *geometry))


def test_operations_are_counted_for_what_is_kept():
    _, index, values, x, _ = problem("block:4")
    forward = 2 * values.numel() * 2 * 7 * 6
    with FlopCounterMode(display=False) as counter:
        y = conv2d(x, values, *at(index), outputs=12, kernel_size=(3, 3), padding=(1, 1))
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 2 * forward


def test_operations_of_a_linear_layer_are_counted_for_what_is_kept():
    _, index, values, _, _ = problem("block:4", kernel=(1, 1))
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        linear(x, values, *at(index), outputs=12).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * values.numel() * 5


def test_a_stride_far_beyond_the_image_is_no_more_work():
    weight, index, values, x, _ = problem("block:4", dtype=torch.float32)
    options = {"outputs": 12, "kernel_size": weight.shape[2:], "padding": (1, 2)}
    near, far = (conv2d(x, values, *at(index), stride=stride, **options) for stride in ((50, 50), (10**9, 10**15)))
    assert torch.equal(far, near)
    for one, other in zip(*(torch.autograd.grad(y.sum(), (x, values)) for y in (far, near)), strict=True):
        # Plain PyTorch adds in another order for another stride.
        torch.testing.assert_close(one, other)
