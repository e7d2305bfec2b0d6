"""The compiled int8 kernel, for every instruction set that runs here, against the reference."""

import subprocess
import sys

import pytest
import torch

from cutwork.kernels import DEVICES, cpu
from cutwork.ops.dispatch import reference_of
from cutwork.ops.int8_linear import int8_linear, quantize
from cutwork.patterns import Block, Shuffled
from cutwork.sparsity.compressed import index_of

if not cpu.has_tiles():
    pytest.skip(DEVICES["cpu"].survey()[0].reason, allow_module_level=True)

from cutwork.kernels.cpu import int8

pytestmark = [pytest.mark.grid, pytest.mark.usefixtures("poisoned_memory")]

SIZES = [(63, 100), (17, 33), (64, 64), (1, 7), (130, 48)]
TILES = [(16, 16), (16, 1), (32, 32), (64, 64), (64, 1), (8, 8), (5, 3), (24, 2), (1, 1), (48, 4)]
PATTERNS = [*(Block(*tile) for tile in TILES), Shuffled(16, 1), Shuffled(5, 1), Shuffled(8, 8)]
TOKENS = [0, 1, 3, 8, 15, 17, 63, 100]
EVERY_ISA = pytest.mark.parametrize("isa", cpu.narrow_instruction_sets())
# bfloat16 has 8 bits, and results come in it.
CLOSE = {"rtol": 2e-2, "atol": 2e-2}


def problem(size, pattern, density, tokens, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = size
    mask = torch.zeros(size, dtype=torch.bool)
    if density:
        mask = pattern.project(torch.rand(size, generator=generator), density)
    index = index_of(mask, pattern)
    values = index.gather(torch.randn(size, generator=generator) * mask).to(dtype)
    shapes = (tokens, inputs), (outputs,)
    return index, values, *(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def quantized(index, values, x, bias, after="none"):
    outputs, _ = index.shape
    integers, scales = quantize(values, index.ptr, index.col, index.order, outputs)
    return x, integers, scales, index.ptr, index.col, index.order, bias, outputs, index.columns, after


@EVERY_ISA
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("density", [0, 0.3, 1])
def test_int8_kernels_add_up_exactly_what_the_reference_does(isa, pattern, density):
    for size in SIZES:
        for tokens in TOKENS:
            index, values, x, bias = problem(size, pattern, density, tokens)
            for given in (bias, None):
                arguments = quantized(index, values, 3 * x + 1, given)
                expected = reference_of(int8_linear)(*arguments)
                torch.testing.assert_close(int8.forward(isa, *arguments), expected, rtol=1e-5, atol=1e-5)
            arguments = quantized(index, values, x.bfloat16(), bias, "gelu")
            expected = reference_of(int8_linear)(*arguments)
            torch.testing.assert_close(int8.forward(isa, *arguments), expected, **CLOSE)


@EVERY_ISA
def test_int8_kernels_do_not_saturate(isa):
    index, values, x, _ = problem((32, 512), Block(16, 16), 1, 20)
    for sign in (-1, 1):
        arguments = quantized(index, sign * torch.ones_like(values), torch.ones_like(x), None)
        torch.testing.assert_close(int8.forward(isa, *arguments), torch.full((20, 32), 512.0 * sign))


@EVERY_ISA
def test_int8_kernels_refuse_values_that_do_not_fit_the_index(isa):
    index, values, x, bias = problem((63, 100), Block(16, 1), 0.5, 5)
    x, integers, *rest = quantized(index, values, x, bias)
    for wrong in (integers[:-1], torch.cat([integers, integers[:1]])):
        with pytest.raises(ValueError, match=f"values of {len(wrong)} steps.* make {len(integers)}"):
            int8.forward(isa, x, wrong, *rest)


@EVERY_ISA
@pytest.mark.parametrize("tokens", [3, 20])
def test_a_row_that_is_not_finite_spoils_no_other(isa, tokens):
    index, values, x, bias = problem((64, 64), Block(16, 16), 0.5, tokens)
    x[0, 5], x[1, 60], x[2, 0] = torch.nan, torch.inf, 0
    arguments = quantized(index, values, x, bias)
    y = int8.forward(isa, *arguments)
    assert y[:2].isnan().all()
    torch.testing.assert_close(y, reference_of(int8_linear)(*arguments), rtol=1e-5, atol=1e-5, equal_nan=True)


@EVERY_ISA
@pytest.mark.parametrize("pattern", [Block(16, 16), Block(64, 1), Shuffled(16, 1), Block(5, 3)], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 50, 333])
def test_results_do_not_depend_on_the_number_of_threads(isa, pattern, tokens):
    index, values, x, bias = problem((96, 81), pattern, 0.4, tokens)
    arguments = quantized(index, values, x, bias)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(int8.forward(isa, *arguments))
    torch.set_num_threads(1)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_registered_operators_use_the_kernel():
    code = """
import torch
from cutwork.kernels.cpu import int8
from cutwork.ops.int8_linear import int8_linear, quantize
from cutwork.patterns import parse
from cutwork.sparsity.compressed import index_of

weight, x = torch.randn(33, 20), torch.randn(7, 20)
index = index_of(parse("block:4").project(weight.abs(), 0.4), parse("block:4"))
at = index.ptr, index.col, index.order
def infer():
    return int8_linear(x, *quantize(index.gather(weight), *at, 33), *at, None, 33, 4, "none")
expected, calls, kernel = infer(), [], int8.forward
int8.forward = lambda *args: calls.append(1) or kernel(*args)
int8.register()
assert torch.equal(infer(), expected)
assert len(calls) == 1
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
