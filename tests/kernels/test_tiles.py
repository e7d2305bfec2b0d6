"""Every compiled kernel, for every instruction set that runs here, against the reference on awkward sizes."""

import subprocess
import sys

import pytest
import torch

from cutwork.kernels import cpu
from cutwork.ops import block_linear as ops
from cutwork.patterns import Block
from cutwork.topology import Topology

if not cpu.has_tiles():
    reason = cpu.why_missing() or "the compiler was neither GCC nor Clang"
    pytest.skip(f"tile kernels not built: {reason}", allow_module_level=True)

from cutwork.kernels.cpu import tiles

SIZES = [(63, 100), (17, 33), (64, 64), (1, 7), (130, 48)]
TILES = [(16, 16), (16, 1), (32, 32), (64, 64), (64, 1), (8, 8), (4, 4), (5, 3), (24, 2), (1, 1), (48, 4)]
TOKENS = [0, 1, 15, 17, 63, 100]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch):
    """Fill what kernels get to write on with nan, so that a place they forget shows."""
    plain = torch.Tensor.new_empty

    def poisoned(tensor, *size, **options):
        return plain(tensor, *size, **options).fill_(torch.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def problem(size, tile, density, tokens, seed=0):
    generator = torch.Generator().manual_seed(seed)
    outputs, inputs = size
    pattern = Block(*tile)
    mask = torch.zeros(size, dtype=torch.bool)
    if density:
        mask = pattern.project(torch.rand(size, generator=generator), density)
    topology = Topology.from_mask(mask, pattern)
    values = topology.gather(torch.randn(size, generator=generator) * mask)
    x = torch.randn(tokens, inputs, generator=generator)
    dy = torch.randn(tokens, outputs, generator=generator)
    return topology, values, x, dy, torch.randn(outputs, generator=generator)


@pytest.mark.parametrize("isa", cpu.instruction_sets())
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("density", [0, 0.3, 1])
def test_kernels_compute_what_the_reference_does(isa, tile, size, density):
    for tokens in TOKENS:
        index, values, x, dy, bias = problem(size, tile, density, tokens)
        at = (index.ptr, index.col)
        pairs = [
            (
                tiles.forward(isa, x, values, *at, bias, size[0]),
                ops.block_linear._init_fn(x, values, *at, bias, size[0]),
            ),
            (
                tiles.forward(isa, x, values, *at, None, size[0]),
                ops.block_linear._init_fn(x, values, *at, None, size[0]),
            ),
            (
                tiles.input_gradient(isa, dy, values, *at, size[1]),
                ops.input_gradient._init_fn(dy, values, *at, size[1]),
            ),
            (tiles.weight_gradient(isa, dy, x, *at, *tile), ops.weight_gradient._init_fn(dy, x, *at, *tile)),
        ]
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", cpu.instruction_sets())
def test_results_do_not_depend_on_the_number_of_threads(isa):
    index, values, x, dy, bias = problem((96, 80), (16, 16), 0.4, 333)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(
            (
                tiles.forward(isa, x, values, index.ptr, index.col, bias, 96),
                tiles.input_gradient(isa, dy, values, index.ptr, index.col, 80),
                tiles.weight_gradient(isa, dy, x, index.ptr, index.col, 16, 16),
            )
        )
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_registered_operators_use_the_kernels_and_give_the_same_gradients():
    code = """
import torch
from cutwork.kernels.cpu import tiles
from cutwork.ops.block_linear import block_linear
from cutwork.patterns import parse
from cutwork.topology import Topology

weight = torch.randn(33, 20)
index = Topology.from_mask(parse("block:4").project(weight.abs(), 0.4), parse("block:4"))
def run():
    torch.manual_seed(0)
    x, values = torch.randn(7, 20, requires_grad=True), index.gather(weight).requires_grad_()
    y = block_linear(x, values, index.ptr, index.col, torch.ones(33), 33)
    return y, *torch.autograd.grad(y.square().sum(), (x, values))
before, calls = run(), []
forward = tiles.forward
tiles.forward = lambda *args: calls.append(1) or forward(*args)
tiles.register()
after = run()
assert calls
for a, b in zip(before, after, strict=True):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
double = torch.ones(2, 20).double()
assert block_linear(double, index.gather(weight).double(), index.ptr, index.col, None, 33).dtype == torch.double
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
