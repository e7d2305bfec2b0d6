import pytest
import torch
import torch.nn.functional as F

from cutwork.ops.int8_linear import int8_linear, integers_of, quantize
from cutwork.patterns import parse
from cutwork.sparsity.compressed import index_of

PATTERNS = ["block:4", "block:5x3", "vector:4", "block:64", "shuffled:4"]


def problem(pattern, size=(13, 10), tokens=6, density=0.4):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, generator=generator)
    mask = parse(pattern).project(weight.abs(), density)
    index = index_of(mask, parse(pattern))
    x = torch.randn(tokens, size[1], generator=generator)
    return weight * mask, index, x, torch.randn(size[0], generator=generator)


def arguments(weight, index, x, bias, after="none"):
    outputs, _ = index.shape
    integers, scales = quantize(index.gather(weight), index.ptr, index.col, index.order, outputs)
    return x, integers, scales, index.ptr, index.col, index.order, bias, outputs, index.columns, after


@pytest.mark.parametrize("pattern", PATTERNS)
def test_quantized_weights_are_the_nearest_of_255_steps_for_each_output(pattern):
    weight, index, _, _ = problem(pattern)
    values = index.gather(weight)
    integers, scales = quantize(values, index.ptr, index.col, index.order, 13)
    found = index.scatter(integers_of(integers, index.ptr, index.columns).float()) * scales[:, None]
    torch.testing.assert_close(scales, weight.abs().amax(1) / 127)
    assert ((found - weight).abs() <= scales[:, None] * 0.501).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_is_close_to_the_linear_layer_with_the_masked_weight(pattern):
    weight, index, x, bias = problem(pattern, size=(96, 80), tokens=50)
    y = int8_linear(*arguments(weight, index, x, bias))
    expected = F.linear(x, weight)
    assert (y - bias - expected).norm() < 0.02 * expected.norm()


def test_whole_numbers_that_fit_are_computed_exactly():
    x = torch.arange(0, 256.0).view(1, 256)
    weight = torch.full((3, 256), 127.0)
    index = index_of(torch.ones_like(weight, dtype=torch.bool), parse("block:4"))
    y = int8_linear(*arguments(weight, index, x, None))
    assert y.tolist() == [[127.0 * 255 * 128] * 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_have_the_dtype_of_the_input_and_may_be_activated(dtype):
    weight, index, x, bias = problem("block:4")
    y = int8_linear(*arguments(weight, index, x.to(dtype), bias, "relu"))
    assert y.dtype == dtype
    assert (y >= 0).all()


def test_rows_without_numbers_and_rows_of_zeros_give_the_bias():
    weight, index, x, bias = problem("block:4")
    torch.testing.assert_close(int8_linear(*arguments(weight, index, 0 * x, bias)), bias.expand(6, 13))
    assert int8_linear(*arguments(weight, index, x[:0], bias)).shape == (0, 13)


def test_a_row_that_is_not_finite_gives_nan():
    weight, index, x, bias = problem("block:4")
    x[1, 3], x[4, 9] = torch.inf, torch.nan
    y = int8_linear(*arguments(weight, index, x, bias))
    assert y[[1, 4]].isnan().all()
    assert y[[0, 2, 3, 5]].isfinite().all()


def test_asking_for_a_gradient_is_refused():
    weight, index, x, bias = problem("block:4")
    y = int8_linear(*arguments(weight, index, x.requires_grad_(), bias))
    with pytest.raises(ValueError, match="int8_linear has no gradient; train in float32 or bfloat16"):
        y.sum().backward()


@pytest.mark.parametrize("pattern", ["block:4", "shuffled:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operator_keeps_the_rules_of_torch_library(pattern, dtype):
    weight, index, x, bias = problem(pattern)
    torch.library.opcheck(int8_linear, arguments(weight, index, x.to(dtype), bias, "gelu"))
