"""Every compiled convolution, for every instruction set that runs here, against the reference on awkward sizes."""

import subprocess
import sys

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cutwork.kernels import DEVICES, cpu
from cutwork.ops import block_conv2d as ops
from cutwork.ops.dispatch import reference_of
from cutwork.patterns import Block, Shuffled
from cutwork.sparsity.compressed import index_of

if not cpu.has_tiles():
    pytest.skip(DEVICES["cpu"].survey()[0].reason, allow_module_level=True)

from cutwork.kernels.cpu import conv

pytestmark = [pytest.mark.grid, pytest.mark.usefixtures("poisoned_memory")]

TILES = [(16, 16), (16, 1), (32, 32), (32, 1), (64, 1), (64, 64), (8, 8), (4, 4), (5, 3), (24, 2), (1, 1), (48, 4)]


def problem(outputs, channels, kernel, pattern, density, groups=1):
    shape = (outputs, kernel[0] * kernel[1] * channels // groups)
    mask = torch.zeros(shape, dtype=torch.bool)
    if density:
        mask = pattern.project(torch.rand(shape), density)
    index = index_of(mask, pattern)
    return index, index.gather(torch.randn(shape) * mask)


def check(isa, index, values, x, geometry, after="none", bias=True):
    """Compare all three kernels with their references."""
    at, outputs = (index.ptr, index.col, index.order), index.shape[0]
    y = reference_of(ops.block_conv2d)(x, values, *at, None, outputs, *geometry, "none")
    dy, size = torch.randn_like(y), list(x.shape[1:])
    pairs = [
        (
            conv.forward,
            ops.block_conv2d,
            (x, values, *at, torch.randn(outputs) if bias else None, outputs, *geometry, after),
        ),
        (conv.input_gradient, ops.input_gradient, (dy, values, *at, size, *geometry)),
        (conv.weight_gradient, ops.weight_gradient, (dy, x, *at, index.rows, index.columns, *geometry)),
    ]
    for kernel, operator, arguments in pairs:
        found, expected = kernel(isa, *arguments), reference_of(operator)(*arguments)
        largest = float(expected.abs().max()) if expected.numel() else 0.0
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * max(1.0, largest))
        assert found.ndim != 4 or found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("isa", cpu.instruction_sets())
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("density", [0, 0.3, 1])
def test_kernels_compute_what_the_reference_does(isa, tile, density):
    torch.manual_seed(0)
    for images, outputs, channels, height, width in [(2, 33, 17, 9, 7), (1, 64, 32, 8, 16), (3, 16, 5, 5, 37)]:
        index, values = problem(outputs, channels, (3, 3), Block(*tile), density)
        x = torch.randn(images, channels, height, width)
        check(isa, index, values, x, ([3, 3], [1, 1], [1, 1], [1, 1], 1))


@pytest.mark.parametrize("isa", cpu.instruction_sets())
@pytest.mark.parametrize("tile", [(16, 16), (32, 32), (5, 16), (64, 32)], ids=str)
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_images_narrower_than_a_vector_have_the_same_gradient(isa, tile, width):
    torch.manual_seed(0)
    for kernel, padding, dilation in [((3, 3), [1, 1], [1, 1]), ((2, 3), [0, 2], [1, 1]), ((3, 1), [3, 0], [2, 1])]:
        for density in (0, 0.3, 1):
            index, values = problem(2 * tile[0], 64, kernel, Block(*tile), density)
            x = torch.randn(7, 64, 20 // width + 9, width)
            check(isa, index, values, x, (list(kernel), [1, 1], padding, dilation, 1))


@pytest.mark.parametrize("isa", cpu.instruction_sets())
@pytest.mark.parametrize("tile", [(8, 16), (16, 16), (24, 32), (32, 32), (16, 48)], ids=str)
@pytest.mark.parametrize("stride", [[1, 1], [2, 2], [1, 3], [3, 2]], ids=str)
def test_units_of_many_channels_know_every_stride(isa, tile, stride):
    torch.manual_seed(0)
    rows, columns = tile
    for kernel, padding, dilation in [([3, 3], [1, 1], [1, 1]), ([1, 1], [0, 0], [1, 1]), ([2, 3], [2, 0], [2, 1])]:
        for images, height, width in [(1, 7, 5), (3, 33, 31), (19, 4, 4), (2, 5, 70)]:
            for density in (0, 0.3):
                index, values = problem(2 * rows, 2 * columns, kernel, Block(*tile), density)
                x = torch.randn(images, 2 * columns, height, width)
                check(isa, index, values, x, (kernel, stride, padding, dilation, 1), after="relu")


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(list)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    isa=st.sampled_from(cpu.instruction_sets()),
    tile=st.sampled_from(TILES),
    shuffled=st.booleans(),
    density=st.sampled_from([0.1, 0.4, 1.0]),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)).map(list),
    stride=pairs,
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)).map(list),
    dilation=pairs,
    groups=st.sampled_from([1, 1, 2, 3]),
    channels=st.sampled_from([1, 3, 8, 16, 20]),
    outputs=st.sampled_from([1, 5, 16, 32, 48]),
    images=st.sampled_from([0, 1, 2, 3, 5, 17, 35]),
    height=st.integers(1, 24),
    width=st.integers(1, 40),
    threads=st.sampled_from([1, 3]),
    after=st.sampled_from(["none", "relu", "gelu"]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_kernels_know_every_geometry(
    isa, tile, shuffled, density, kernel, stride, padding, dilation, groups, channels, outputs, images, height,
    width, threads, after, bias, seed,
):  # fmt: skip
    assume(min(ops.sizes_out((height, width), kernel, stride, padding, dilation)) > 0)
    torch.manual_seed(seed)
    pattern = (Shuffled if shuffled else Block)(*tile)
    index, values = problem(groups * outputs, groups * channels, kernel, pattern, density, groups)
    x = torch.randn(images, groups * channels, height, width)
    torch.set_num_threads(threads)
    try:
        check(isa, index, values, x, (kernel, stride, padding, dilation, groups), after, bias)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("isa", cpu.instruction_sets())
@pytest.mark.parametrize("stride", [1, 2])
def test_images_larger_than_a_cache_are_computed_in_bands(isa, stride):
    torch.manual_seed(0)
    index, values = problem(16, 64, (3, 3), Block(16, 1), 0.1)
    for images in (1, 4):
        x = torch.randn(images, 64, 73, 70)
        check(isa, index, values, x, ([3, 3], [stride, stride], [1, 1], [1, 1], 1))


@pytest.mark.parametrize("isa", cpu.instruction_sets())
@pytest.mark.parametrize("pattern", [Block(16, 16), Shuffled(16, 1)], ids=str)
@pytest.mark.parametrize("size", [(17, 13), (20, 2), (70, 64)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("images", [1, 3, 40])
def test_results_do_not_depend_on_the_number_of_threads(isa, pattern, images, size, stride):
    torch.manual_seed(0)
    index, values = problem(96, 32, (3, 3), pattern, 0.4)
    at, geometry = (index.ptr, index.col, index.order), ([3, 3], [stride, stride], [1, 1], [1, 1], 1)
    x, results = torch.randn(images, 32, *size), []
    dy = torch.randn(images, 96, *ops.sizes_out(size, *geometry[:4]))
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(
            (
                conv.forward(isa, x, values, *at, None, 96, *geometry, "gelu"),
                conv.input_gradient(isa, dy, values, *at, [32, *size], *geometry),
                conv.weight_gradient(isa, dy, x, *at, index.rows, index.columns, *geometry),
            )
        )
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("isa", cpu.instruction_sets())
def test_infinities_and_nan_stay_where_they_belong(isa):
    torch.manual_seed(0)
    index, values = problem(16, 16, (3, 3), Block(16, 16), 1)
    at, geometry = (index.ptr, index.col, index.order), ([3, 3], [1, 1], [1, 1], [1, 1], 1)
    x = torch.randn(1, 16, 7, 8)
    x[0, 3, 2, 2], x[0, 5, 6, 7] = torch.inf, torch.nan
    y = conv.forward(isa, x, values, *at, None, 16, *geometry, "none")
    expected = reference_of(ops.block_conv2d)(x, values, *at, None, 16, *geometry, "none")
    assert torch.equal(y.isfinite(), expected.isfinite())


def test_the_bias_must_fit():
    index, values = problem(8, 4, (3, 3), Block(4, 4), 1)
    with pytest.raises(ValueError, match=r"the bias has the shape \(7,\); expected \(8,\)"):
        conv.forward(
            *("generic", torch.randn(1, 4, 5, 5), values, index.ptr, index.col, None, torch.randn(7), 8),
            *([3, 3], [1, 1], [0, 0], [1, 1], 1, "none"),
        )


def test_registered_operators_use_the_kernels_and_give_the_same_gradients():
    code = """
import torch
from cutwork.kernels.cpu import conv
from cutwork.ops.block_conv2d import block_conv2d, conv2d
from cutwork.patterns import parse
from cutwork.sparsity.compressed import index_of

weight = torch.randn(16, 72)
index = index_of(parse("block:4").project(weight.abs(), 0.4), parse("block:4"))
geometry = dict(outputs=16, kernel_size=(3, 3), stride=(2, 1), padding=(1, 1))
def past_it(x, values):
    return conv2d(x, values, index.ptr, index.col, None, torch.ones(16), **geometry)
def through_the_dispatcher(x, values):
    at = (index.ptr, index.col, None, torch.ones(16))
    return block_conv2d(x, values, *at, 16, [3, 3], [2, 1], [1, 1], [1, 1], 1, "none")
def run(function):
    torch.manual_seed(0)
    x, values = torch.randn(2, 8, 6, 5, requires_grad=True), index.gather(weight).requires_grad_()
    y = function(x, values)
    return y, *torch.autograd.grad(y.square().sum(), (x, values))
results, calls = [run(past_it), run(through_the_dispatcher)], []
def counted(kernel):
    return lambda *args: calls.append(1) or kernel(*args)
for name in ("forward", "input_gradient", "weight_gradient"):
    setattr(conv, name, counted(getattr(conv, name)))
conv.register()
results += [run(past_it), run(through_the_dispatcher)]
assert len(calls) == 6
for other in results[1:]:
    for a, b in zip(results[0], other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
