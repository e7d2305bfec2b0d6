"""The compiled batch norms, for every instruction set that runs here, against the references."""

import pytest
import torch

from cutwork.kernels import DEVICES, cpu
from cutwork.ops import batch_norm as ops
from cutwork.ops.dispatch import reference_of

if not cpu.has_tiles():
    pytest.skip(DEVICES["cpu"].survey()[0].reason, allow_module_level=True)

from cutwork.kernels.cpu import normalisation

pytestmark = pytest.mark.usefixtures("poisoned_memory")
EVERY_ISA = pytest.mark.parametrize("isa", cpu.instruction_sets())
SHAPES = [(2, 3, 4, 5), (7, 33), (1, 16, 70, 3), (3, 64, 1, 1), (2, 5, 9), (130, 8, 2, 2)]
KINDS = [*((after, False) for after in ("none", "relu", "gelu", "gelu_tanh", "silu")), ("none", True), ("relu", True)]


def problem(shape, has_residual, is_affine=True):
    torch.manual_seed(0)
    x = torch.randn(shape) * 3 + 5
    residual = torch.randn(shape) if has_residual else None
    return x, residual, *(torch.randn(shape[1]) if is_affine else None for _ in range(2))


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert a.stride() == b.stride()


@EVERY_ISA
@pytest.mark.parametrize(("after", "has_residual"), KINDS)
@pytest.mark.parametrize("is_affine", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_compute_what_the_reference_does(isa, after, has_residual, is_affine, shape):
    x, residual, weight, bias = problem(shape, has_residual, is_affine)
    results = reference_of(ops.normalise)(x, residual, weight, bias, 1e-5, after)
    assert_same(normalisation.forward(isa, x, residual, weight, bias, 1e-5, after), results)
    y, mean, var = results
    arguments = (torch.randn(shape), x, y if has_residual else None, weight, bias, mean, var, 1e-5, after)
    assert_same(normalisation.gradient(isa, *arguments), reference_of(ops.norm_gradient)(*arguments))


@EVERY_ISA
def test_a_variance_far_smaller_than_the_mean_is_found(isa):
    torch.manual_seed(0)
    x = torch.randn(64, 8, 16, 16) * 0.01 + 1000
    _, mean, var = normalisation.forward(isa, x, None, None, None, 1e-5, "none")
    wide_var, wide_mean = torch.var_mean(x.double(), [0, 2, 3], correction=0)
    torch.testing.assert_close(var.double(), wide_var, rtol=1e-3, atol=0)
    torch.testing.assert_close(mean.double(), wide_mean, rtol=1e-7, atol=0)


@EVERY_ISA
def test_results_do_not_depend_on_the_number_of_threads(isa):
    x, residual, weight, bias = problem((5, 40, 23, 17), has_residual=True)
    dy, results = torch.randn_like(x), []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        y, mean, var = normalisation.forward(isa, x, residual, weight, bias, 1e-5, "relu")
        results.append((y, mean, var, *normalisation.gradient(isa, dy, x, y, weight, bias, mean, var, 1e-5, "relu")))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@EVERY_ISA
def test_nan_and_infinities_spoil_their_own_channels_only(isa):
    x, _, weight, bias = problem((4, 20, 6, 6), has_residual=False)
    x[0, 3, 2, 2], x[1, 5, 0, 0] = torch.nan, torch.inf
    y, _, var = normalisation.forward(isa, x, None, weight, bias, 1e-5, "relu")
    spoilt = torch.tensor([channel in (3, 5) for channel in range(20)])
    assert torch.equal(~var.isfinite(), spoilt) and y[:, ~spoilt].isfinite().all()


def test_what_does_not_fit_is_refused():
    x = torch.randn(2, 4, 3, 3)
    with pytest.raises(ValueError, match=r"the weight has the shape \(3,\); expected \(4,\)"):
        normalisation.forward("generic", x, None, torch.ones(3), None, 1e-5, "none")
    with pytest.raises(ValueError, match="the residual has the shape"):
        normalisation.forward("generic", x, torch.ones(2, 4, 3, 2), None, None, 1e-5, "none")
