import pytest
import torch

import cutwork as cw
from cutwork.sparsity.fixed import Fixed
from cutwork.sparsity.layout import Layout


def fixed(shape, dtype=torch.float32):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(shape, dtype=dtype))
    pattern = cw.parse("block:2")
    layout = Layout(shape)
    mask = pattern.project(layout.to_matrix(weight.detach()).abs(), 0.5)
    sparsity = Fixed(mask, layout, pattern=pattern, density=0.5)
    with torch.no_grad():
        sparsity.after_update(weight)
    return sparsity, weight


@pytest.mark.parametrize("shape", [(8, 6), (8, 3, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_the_gradient_outside_the_mask_comes_back_as_it_was(shape, dtype):
    sparsity, weight = fixed(shape, dtype)
    # In half precision a gain of 2**-6 costs nothing as long as no number is too small.
    gradient = torch.randint(1, 9, shape).to(dtype)
    sparsity.expect_gradient(weight, True)
    sparsity(weight).backward(gradient)
    given = sparsity.before_update(weight, 1.0, 0.1)
    assert torch.equal(given.rows(slice(None)), sparsity.layout.to_matrix(gradient))
    assert torch.equal(weight.grad, gradient * sparsity.mask)


def test_a_gradient_that_nobody_expects_is_masked_in_backward():
    sparsity, weight = fixed((8, 6))
    sparsity(weight).sum().backward()
    assert torch.equal(weight.grad, sparsity.mask.float())
    assert sparsity.before_update(weight, 1.0, 0.1) is None


def test_without_a_gradient_there_is_none_to_form():
    sparsity, weight = fixed((8, 6))
    sparsity.expect_gradient(weight, True)
    assert sparsity.before_update(weight, 1.0, 0.1) is None


def test_a_move_starts_new_weights_at_zero_and_their_state_at_zero_or_its_usual_size():
    sparsity, weight = fixed((8, 6))
    state = {"momentum": torch.ones(8, 6), "mean_square": torch.full((8, 6), 7.0), "step": torch.tensor(3.0)}
    old, new = sparsity.mask.clone(), ~sparsity.mask
    new[:2, :2] = old[:2, :2] = True
    sparsity.set_mask(old)
    with torch.no_grad():
        weight.fill_(1)
        state["mean_square"][old] = 5
        sparsity.move(new, weight, [state], {"mean_square"})
    assert torch.equal(weight.detach(), (old & new).float())
    assert torch.equal(state["momentum"], (old & new).float()) and state["step"] == 3
    assert torch.equal(state["mean_square"], 5 * new.float())
