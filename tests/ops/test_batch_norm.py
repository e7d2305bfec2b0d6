import pytest
import torch
import torch.nn.functional as F

from cutwork.ops.activations import activate
from cutwork.ops.batch_norm import batch_norm, normalise

SHAPES = [(4, 6, 5, 3), (9, 6), (3, 6, 7)]
KINDS = [*((after, False) for after in ("none", "relu", "gelu", "gelu_tanh", "silu")), ("none", True), ("relu", True)]


def problem(shape, *, has_residual, is_affine=True, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def numbers(*size):
        return torch.randn(size, generator=generator, dtype=dtype).requires_grad_()

    parameters = [numbers(shape[1]) if is_affine else None for _ in range(2)]
    return numbers(*shape), *parameters, numbers(*shape) if has_residual else None


def expected(x, weight, bias, residual, after):
    z = F.batch_norm(x, None, None, weight, bias, training=True)
    return activate(after, z if residual is None else z + residual)


@pytest.mark.parametrize("compiled", [False, True], ids=["directly", "as an operator"])
@pytest.mark.parametrize("is_affine", [True, False])
@pytest.mark.parametrize(("after", "has_residual"), KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_is_pytorchs_batch_norm_and_what_follows(
    shape, after, has_residual, is_affine, compiled, dtype, monkeypatch
):
    if compiled:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x, weight, bias, residual = problem(shape, has_residual=has_residual, is_affine=is_affine, dtype=dtype)
    inputs = [each for each in (x, weight, bias, residual) if each is not None]
    y, mean, var = batch_norm(x, weight, bias, eps=1e-5, after=after, residual=residual)
    wanted = expected(x, weight, bias, residual, after)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {}
    torch.testing.assert_close(y, wanted, **tolerance)
    others = [dim for dim in range(x.ndim) if dim != 1]
    torch.testing.assert_close((var, mean), torch.var_mean(x, others, correction=0), **tolerance)
    dy = torch.randn_like(y)
    grads = torch.autograd.grad(y, inputs, dy)
    for found, grad in zip(grads, torch.autograd.grad(wanted, inputs, dy), strict=True):
        torch.testing.assert_close(found, grad, **tolerance)


def test_half_precision_is_computed_in_float32():
    x, weight, bias, _ = problem((8, 6, 5, 5), has_residual=False, dtype=torch.bfloat16)
    y, mean, _ = batch_norm(x, weight.float(), bias.float(), eps=1e-5, after="relu")
    wanted = expected(x.float(), weight.float(), bias.float(), None, "relu")
    assert (y.dtype, mean.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y, wanted.bfloat16())


def test_second_derivatives_lead_through_the_statistics():
    x, weight, bias, residual = problem((5, 3, 2, 2), has_residual=True)
    assert torch.autograd.gradgradcheck(
        lambda *given: batch_norm(*given[:3], eps=1e-5, after="none", residual=given[3])[0], (x, weight, bias, residual)
    )
    assert torch.autograd.gradgradcheck(lambda *given: batch_norm(*given, eps=1e-5, after="gelu")[0], (x, weight, bias))


@pytest.mark.parametrize("has_residual", [False, True])
def test_the_operator_keeps_what_pytorch_asks_of_operators(has_residual):
    x, weight, bias, residual = problem((3, 4, 5, 2), has_residual=has_residual, dtype=torch.float32)
    torch.library.opcheck(normalise, (x, residual, weight, bias, 1e-5, "relu"))


def test_torch_func_differentiates_the_reference():
    x, weight, bias, _ = problem((5, 3, 2, 2), has_residual=False)
    found = torch.func.grad(lambda x: batch_norm(x, weight, bias, eps=1e-5, after="silu")[0].square().sum())(x)
    wanted = torch.autograd.grad(expected(x, weight, bias, None, "silu").square().sum(), x)[0]
    torch.testing.assert_close(found, wanted)


def test_what_cannot_be_taken_along_is_refused():
    x = torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="no gelu is taken along behind a sum; write one of 'none', 'relu'"):
        batch_norm(x, None, None, eps=1e-5, after="gelu", residual=x)
    with pytest.raises(ValueError, match="does not fit"):
        batch_norm(x, None, None, eps=1e-5, residual=x[:1])
    with pytest.raises(ValueError, match="unknown activation"):
        batch_norm(x, None, None, eps=1e-5, after="tanh")
