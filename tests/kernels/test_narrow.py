"""The compiled bfloat16 and int8 kernels, for every instruction set that runs here, against the reference."""

import subprocess
import sys

import pytest
import torch

from cutwork.kernels import cpu
from cutwork.ops import block_linear as ops
from cutwork.ops.activations import ACTIVATIONS
from cutwork.ops.int8_linear import int8_linear, quantize
from cutwork.patterns import Block, Shuffled
from cutwork.sparsity.compressed import index_of

if not cpu.has_tiles():
    reason = cpu.why_missing() or "the compiler was neither GCC nor Clang"
    pytest.skip(f"narrow kernels not built: {reason}", allow_module_level=True)

from cutwork.kernels.cpu import narrow

SIZES = [(63, 100), (17, 33), (64, 64), (1, 7), (130, 48)]
TILES = [(16, 16), (16, 1), (32, 32), (64, 64), (64, 1), (8, 8), (5, 3), (24, 2), (1, 1), (48, 4)]
PATTERNS = [*(Block(*tile) for tile in TILES), Shuffled(16, 1), Shuffled(5, 1), Shuffled(8, 8)]
TOKENS = [0, 1, 3, 8, 15, 17, 63, 100]
EVERY_ISA = pytest.mark.parametrize("isa", narrow.instruction_sets())
# bfloat16 has 8 bits, and results come in it.
CLOSE = {"rtol": 2e-2, "atol": 2e-2}


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill what kernels get to write on with nan, so that a place they forget shows."""
    plain = torch.Tensor.new_empty

    def poisoned(tensor, *size, **options):
        return plain(tensor, *size, **options).fill_(torch.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def problem(size, pattern, density, tokens, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = size
    mask = torch.zeros(size, dtype=torch.bool)
    if density:
        mask = pattern.project(torch.rand(size, generator=generator), density)
    index = index_of(mask, pattern)
    values = index.gather(torch.randn(size, generator=generator) * mask).to(dtype)
    shapes = (tokens, inputs), (tokens, outputs), (outputs,)
    return index, values, *(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def in_float32(arguments):
    return [a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]


def check(isa, index, values, x, dy, bias, residual=None, before="none", after="none", close=CLOSE):
    """Compare all three kernels with their references, computed in float32 and rounded."""
    at = (index.ptr, index.col, index.order)
    outputs, inputs = index.shape
    pairs = [
        (narrow.forward, ops.block_linear, (x, values, *at, bias, residual, outputs, before, after)),
        (narrow.input_gradient, ops.input_gradient, (dy, values, *at, x, inputs, before)),
        (narrow.weight_gradient, ops.weight_gradient, (dy, x, *at, index.rows, index.columns, before)),
    ]
    for kernel, operator, arguments in pairs:
        expected = operator._init_fn(*in_float32(arguments)).bfloat16()
        torch.testing.assert_close(kernel(isa, *arguments), expected, **close)


@EVERY_ISA
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("density", [0, 0.3, 1])
def test_bfloat16_kernels_compute_what_the_reference_does(isa, pattern, density):
    for size in SIZES:
        for tokens in TOKENS:
            index, values, x, dy, bias = problem(size, pattern, density, tokens)
            check(isa, index, values, x, dy, bias)
            check(isa, index, values, x, dy, None, residual=dy)


@EVERY_ISA
@pytest.mark.parametrize(
    "pattern", [Block(16, 16), Block(5, 3), Shuffled(16, 1), Shuffled(8, 8), Shuffled(5, 1)], ids=str
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_kernels_take_activations_residuals_and_orders_along(isa, pattern, activation):
    for size in ((63, 100), (17, 33), (64, 64)):
        for tokens in (1, 5, 17, 100):
            index, values, x, dy, bias = problem(size, pattern, 0.3, tokens)
            check(isa, index, values, x, dy, bias, before=activation, close={"rtol": 5e-2, "atol": 5e-2})
            check(isa, index, values, x, dy, bias, residual=dy, after=activation)


@EVERY_ISA
@pytest.mark.parametrize("pattern", [Block(16, 16), Shuffled(16, 1)], ids=str)
@pytest.mark.parametrize("tokens", [5, 50])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_results_are_rounded_once(isa, pattern, tokens, activation):
    index, values, x, dy, bias = problem((63, 100), pattern, 0.3, tokens)
    arguments = (x, values, index.ptr, index.col, index.order, bias, dy, 63, "none", activation)
    exact = ops.block_linear._init_fn(*in_float32(arguments))
    step = exact.abs().log2().floor().exp2() / 128
    assert ((narrow.forward(isa, *arguments) - exact).abs() <= 0.5 * step + 1e-5).all()


def int8_arguments(index, values, x, bias, after="none"):
    outputs, _ = index.shape
    integers, scales = quantize(values, index.ptr, index.col, index.order, outputs)
    return x, integers, scales, index.ptr, index.col, index.order, bias, outputs, index.columns, after


@EVERY_ISA
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("density", [0, 0.3, 1])
def test_int8_kernels_add_up_exactly_what_the_reference_does(isa, pattern, density):
    for size in SIZES:
        for tokens in TOKENS:
            index, values, x, _, bias = problem(size, pattern, density, tokens, torch.float32)
            for given in (bias, None):
                arguments = int8_arguments(index, values, 3 * x + 1, given)
                expected = int8_linear._init_fn(*arguments)
                torch.testing.assert_close(narrow.int8_forward(isa, *arguments), expected, rtol=1e-5, atol=1e-5)
            arguments = int8_arguments(index, values, x.bfloat16(), bias, "gelu")
            expected = int8_linear._init_fn(*arguments)
            torch.testing.assert_close(narrow.int8_forward(isa, *arguments), expected, **CLOSE)


@EVERY_ISA
def test_int8_kernels_do_not_saturate(isa):
    index, values, x, _, _ = problem((32, 512), Block(16, 16), 1, 20, torch.float32)
    for sign in (-1, 1):
        arguments = int8_arguments(index, sign * torch.ones_like(values), torch.ones_like(x), None)
        torch.testing.assert_close(narrow.int8_forward(isa, *arguments), torch.full((20, 32), 512.0 * sign))


@EVERY_ISA
def test_int8_kernels_refuse_values_that_do_not_fit_the_index(isa):
    index, values, x, _, bias = problem((63, 100), Block(16, 1), 0.5, 5, torch.float32)
    x, integers, *rest = int8_arguments(index, values, x, bias)
    for wrong in (integers[:-1], torch.cat([integers, integers[:1]])):
        with pytest.raises(ValueError, match=f"values of {len(wrong)} steps.* make {len(integers)}"):
            narrow.int8_forward(isa, x, wrong, *rest)


@EVERY_ISA
@pytest.mark.parametrize("tokens", [3, 20])
def test_a_row_that_is_not_finite_spoils_no_other(isa, tokens):
    index, values, x, _, bias = problem((64, 64), Block(16, 16), 0.5, tokens, torch.float32)
    x[0, 5], x[1, 60], x[2, 0] = torch.nan, torch.inf, 0
    arguments = int8_arguments(index, values, x, bias)
    y = narrow.int8_forward(isa, *arguments)
    assert y[:2].isnan().all()
    torch.testing.assert_close(y, int8_linear._init_fn(*arguments), rtol=1e-5, atol=1e-5, equal_nan=True)


@EVERY_ISA
@pytest.mark.parametrize("pattern", [Block(16, 16), Block(64, 1), Shuffled(16, 1), Block(5, 3)], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 50, 333])
def test_results_do_not_depend_on_the_number_of_threads(isa, pattern, tokens):
    index, values, x, dy, bias = problem((96, 81), pattern, 0.4, tokens)
    at = (index.ptr, index.col, index.order)
    int8 = int8_arguments(index, values.float(), x.float(), bias)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(
            (
                narrow.forward(isa, x, values, *at, bias, dy, 96, "none", "none"),
                narrow.input_gradient(isa, dy, values, *at, None, 81, "none"),
                narrow.weight_gradient(isa, dy, x, *at, index.rows, index.columns, "none"),
                narrow.int8_forward(isa, *int8),
            )
        )
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_registered_operators_use_the_kernels_in_training_and_in_int8():
    code = """
import torch
from cutwork.kernels.cpu import narrow, tiles
from cutwork.ops.block_linear import linear
from cutwork.ops.int8_linear import int8_linear, quantize
from cutwork.patterns import parse
from cutwork.sparsity.compressed import index_of

weight = torch.randn(33, 20)
index = index_of(parse("block:4").project(weight.abs(), 0.4), parse("block:4"))
at = index.ptr, index.col, index.order
x = torch.randn(7, 20, requires_grad=True)
values = index.gather(weight)
def train():
    leaf = values.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = linear(x, leaf, *at, torch.ones(33), outputs=33, before="gelu")
    return y, *torch.autograd.grad(y.float().square().sum(), (x, leaf))
def infer():
    return (int8_linear(x.detach(), *quantize(values, *at, 33), *at, None, 33, 4, "none"),)
expected, calls = train() + infer(), []
def counted(kernel):
    return lambda *args: calls.append(1) or kernel(*args)
for name in ("forward", "input_gradient", "weight_gradient", "int8_forward"):
    setattr(narrow, name, counted(getattr(narrow, name)))
tiles.register()
narrow.register()
found = train() + infer()
assert len(calls) == 4
for a, b in zip(expected, found, strict=True):
    torch.testing.assert_close(a, b, rtol=3e-2, atol=3e-1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
