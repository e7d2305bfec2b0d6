"""The compiled linear kernels, for every instruction set that runs here, against the reference on awkward sizes."""

import subprocess
import sys

import pytest
import torch

from cutwork.kernels import DEVICES, cpu
from cutwork.ops import block_linear as ops
from cutwork.ops.activations import ACTIVATIONS
from cutwork.ops.dispatch import reference_of
from cutwork.patterns import Block, Shuffled
from cutwork.sparsity.compressed import index_of

if not cpu.has_tiles():
    pytest.skip(DEVICES["cpu"].survey()[0].reason, allow_module_level=True)

from cutwork.kernels.cpu import linear

pytestmark = [pytest.mark.grid, pytest.mark.usefixtures("poisoned_memory")]

SIZES = [(63, 100), (17, 33), (64, 64), (1, 7), (130, 48)]
TILES = [(16, 16), (16, 1), (32, 32), (64, 64), (64, 1), (8, 8), (4, 4), (5, 3), (24, 2), (1, 1), (48, 4)]
SHUFFLED = [Shuffled(16, 1), Shuffled(5, 1), Shuffled(8, 8)]
TOKENS = [0, 1, 3, 8, 9, 15, 17, 49, 63, 100]
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
    shapes = (tokens, inputs), (tokens, outputs), (outputs,)
    return index, values, *(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def check(isa, index, values, x, dy, bias, residual=None, before="none", after="none"):
    """Compare all three kernels with their references."""
    at = (index.ptr, index.col, index.order)
    outputs, inputs = index.shape
    pairs = [
        (linear.forward, ops.block_linear, (x, values, *at, bias, residual, outputs, before, after)),
        (linear.input_gradient, ops.input_gradient, (dy, values, *at, x, inputs, before)),
        (linear.weight_gradient, ops.weight_gradient, (dy, x, *at, index.rows, index.columns, before)),
    ]
    for kernel, operator, arguments in pairs:
        torch.testing.assert_close(kernel(isa, *arguments), reference_of(operator)(*arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", cpu.instruction_sets())
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("density", [0, 0.3, 1])
def test_kernels_compute_what_the_reference_does(isa, tile, size, density):
    for tokens in TOKENS:
        index, values, x, dy, bias = problem(size, Block(*tile), density, tokens)
        check(isa, index, values, x, dy, bias)
        check(isa, index, values, x, dy, None)


@pytest.mark.parametrize("isa", cpu.instruction_sets())
@pytest.mark.parametrize(
    "pattern", [Block(16, 16), Block(5, 3), Shuffled(16, 1), Shuffled(8, 8), Shuffled(5, 1)], ids=str
)
@pytest.mark.parametrize("size", [(63, 100), (17, 33), (64, 64)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kernels_take_activations_residuals_and_orders_along(isa, pattern, size, activation):
    for tokens in (1, 5, 17, 100):
        index, values, x, dy, bias = problem(size, pattern, 0.3, tokens)
        check(isa, index, values, 3 * x, dy, bias, before=activation)
        check(isa, index, values, x, dy, bias, residual=dy, after=activation)
        check(isa, index, values, x, dy, None, residual=dy, before=activation, after=activation)


def in_float32(arguments):
    return [a.float() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments]


def check_bfloat16(isa, index, values, x, dy, bias, residual=None, before="none", after="none", close=CLOSE):
    """Compare all three kernels with their references, computed in float32 and rounded."""
    at = (index.ptr, index.col, index.order)
    outputs, inputs = index.shape
    pairs = [
        (linear.forward, ops.block_linear, (x, values, *at, bias, residual, outputs, before, after)),
        (linear.bfloat16_input_gradient, ops.input_gradient, (dy, values, *at, x, inputs, before)),
        (linear.bfloat16_weight_gradient, ops.weight_gradient, (dy, x, *at, index.rows, index.columns, before)),
    ]
    for kernel, operator, arguments in pairs:
        expected = reference_of(operator)(*in_float32(arguments)).bfloat16()
        torch.testing.assert_close(kernel(isa, *arguments), expected, **close)


@pytest.mark.parametrize("isa", cpu.narrow_instruction_sets())
@pytest.mark.parametrize("pattern", [*(Block(*tile) for tile in TILES), *SHUFFLED], ids=str)
@pytest.mark.parametrize("density", [0, 0.3, 1])
def test_bfloat16_kernels_compute_what_the_reference_does(isa, pattern, density):
    for size in SIZES:
        for tokens in TOKENS:
            index, values, x, dy, bias = problem(size, pattern, density, tokens, torch.bfloat16)
            check_bfloat16(isa, index, values, x, dy, bias)
            check_bfloat16(isa, index, values, x, dy, None, residual=dy)


@pytest.mark.parametrize("isa", cpu.narrow_instruction_sets())
@pytest.mark.parametrize(
    "pattern", [Block(16, 16), Block(5, 3), Shuffled(16, 1), Shuffled(8, 8), Shuffled(5, 1)], ids=str
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_kernels_take_activations_residuals_and_orders_along(isa, pattern, activation):
    for size in ((63, 100), (17, 33), (64, 64)):
        for tokens in (1, 5, 17, 100):
            index, values, x, dy, bias = problem(size, pattern, 0.3, tokens, torch.bfloat16)
            check_bfloat16(isa, index, values, x, dy, bias, before=activation, close={"rtol": 5e-2, "atol": 5e-2})
            check_bfloat16(isa, index, values, x, dy, bias, residual=dy, after=activation)


@pytest.mark.parametrize("isa", cpu.narrow_instruction_sets())
@pytest.mark.parametrize("pattern", [Block(16, 16), Shuffled(16, 1)], ids=str)
@pytest.mark.parametrize("tokens", [5, 50])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_results_are_rounded_once(isa, pattern, tokens, activation):
    index, values, x, dy, bias = problem((63, 100), pattern, 0.3, tokens, torch.bfloat16)
    arguments = (x, values, index.ptr, index.col, index.order, bias, dy, 63, "none", activation)
    exact = reference_of(ops.block_linear)(*in_float32(arguments))
    step = exact.abs().log2().floor().exp2() / 128
    assert ((linear.forward(isa, *arguments) - exact).abs() <= 0.5 * step + 1e-5).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", [Block(16, 16), Block(64, 1), Shuffled(16, 1), Block(5, 3)], ids=str)
@pytest.mark.parametrize("tokens", [1, 3, 50, 333])
def test_results_do_not_depend_on_the_number_of_threads(dtype, pattern, tokens):
    index, values, x, dy, bias = problem((96, 81), pattern, 0.4, tokens, dtype)
    at = (index.ptr, index.col, index.order)
    if dtype == torch.float32:
        sets = cpu.instruction_sets()
        input_gradient, weight_gradient = linear.input_gradient, linear.weight_gradient
    else:
        sets = cpu.narrow_instruction_sets()
        input_gradient, weight_gradient = linear.bfloat16_input_gradient, linear.bfloat16_weight_gradient
    for isa in sets:
        results = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            results.append(
                (
                    linear.forward(isa, x, values, *at, bias, dy, 96, "none", "gelu"),
                    input_gradient(isa, dy, values, *at, x, 81, "gelu"),
                    weight_gradient(isa, dy, x, *at, index.rows, index.columns, "gelu"),
                )
            )
        torch.set_num_threads(1)
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_a_process_made_by_fork_does_not_wait_for_threads_it_has_not():
    code = """
import os, signal, time, torch
from cutwork.kernels.cpu import linear
from cutwork.patterns import Block
from cutwork.sparsity.compressed import index_of

torch.set_num_threads(2)
index = index_of(torch.ones(256, 256, dtype=torch.bool), Block(16, 16))
values, x = torch.ones(index.num_units, 16, 16), torch.ones(100, 256)
def run():
    y = linear.forward("generic", x, values, index.ptr, index.col, None, None, None, 256, "none", "none")
    assert (y == 256).all()
run()
child = os.fork()
if child == 0:
    run()
    os._exit(0)
for _ in range(200):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        raise SystemExit(status)
    time.sleep(0.05)
os.kill(child, signal.SIGKILL)
raise SystemExit("the child hangs")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_registered_operators_use_the_kernels_and_give_the_same_gradients():
    code = """
import torch
from cutwork.kernels.cpu import linear
from cutwork.ops import block_linear as ops
from cutwork.patterns import parse
from cutwork.sparsity.compressed import index_of

weight = torch.randn(33, 20)
index = index_of(parse("block:4").project(weight.abs(), 0.4), parse("block:4"))
def through_the_dispatcher(x, values):
    return ops.block_linear(x, values, index.ptr, index.col, None, torch.ones(33), None, 33, "gelu", "none")
def past_it(x, values):
    return ops.linear(x, values, index.ptr, index.col, None, torch.ones(33), outputs=33, before="gelu")
def run(function):
    torch.manual_seed(0)
    x, values = torch.randn(7, 20, requires_grad=True), index.gather(weight).requires_grad_()
    y = function(x, values)
    return y, *torch.autograd.grad(y.square().sum(), (x, values))
results, calls = [run(past_it), run(through_the_dispatcher)], []
def counted(kernel):
    return lambda *args: calls.append(1) or kernel(*args)
for name in ("forward", "input_gradient", "weight_gradient"):
    setattr(linear, name, counted(getattr(linear, name)))
linear.register()
results += [run(past_it), run(through_the_dispatcher)]
assert len(calls) == 6
for other in results[1:]:
    for a, b in zip(results[0], other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
double = torch.ones(2, 20).double()
assert ops.linear(double, index.gather(weight).double(), index.ptr, index.col, outputs=33).dtype == torch.double
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_registered_operators_use_the_kernels_in_mixed_precision():
    code = """
import torch
from cutwork.kernels.cpu import linear
from cutwork.ops import block_linear as ops
from cutwork.patterns import parse
from cutwork.sparsity.compressed import index_of

weight = torch.randn(33, 20)
index = index_of(parse("block:4").project(weight.abs(), 0.4), parse("block:4"))
x, values = torch.randn(7, 20, requires_grad=True), index.gather(weight).requires_grad_()
def train():
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.linear(x, values, index.ptr, index.col, None, torch.ones(33), outputs=33, before="gelu")
    return y, *torch.autograd.grad(y.float().square().sum(), (x, values))
expected, calls = train(), []
def counted(kernel):
    return lambda *args: calls.append(1) or kernel(*args)
for name in ("forward", "bfloat16_input_gradient", "bfloat16_weight_gradient"):
    setattr(linear, name, counted(getattr(linear, name)))
linear.register()
found = train()
assert len(calls) == 3
for a, b in zip(expected, found, strict=True):
    torch.testing.assert_close(a, b, rtol=3e-2, atol=3e-1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
