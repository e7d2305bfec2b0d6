import pytest
import torch
from torch import nn

import cutwork as cw


def estimating(layer, storage):
    cw.sparsify(layer, "block:4", density=0.5, method=cw.RigL(every=1, until=9, estimate=True), storage=storage)
    layer.sparsity.expect_gradient(layer.trained, True)
    return layer


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_the_estimate_is_the_outer_product_of_the_norms(storage):
    torch.manual_seed(0)
    layer = estimating(nn.Linear(16, 8), storage)
    x = torch.randn(5, 16)
    y = layer(x)
    dy = torch.randn_like(y)
    y.backward(dy)
    estimate = layer.sparsity.before_update(layer.trained, 1.0, 0.1).rows(slice(None))
    # The gain is a factor that changes no order.
    torch.testing.assert_close(
        estimate / estimate.norm(), torch.outer(dy.norm(dim=0), x.norm(dim=0)) / x.norm() / dy.norm()
    )
    assert layer.sparsity.energy_in.grad is None and layer.sparsity.energy_out.grad is None


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_a_convolution_reads_a_channel_at_every_place_of_its_kernel(storage):
    layer = estimating(nn.Conv2d(4, 8, 3), storage)
    layer(torch.randn(2, 4, 5, 5)).square().sum().backward()
    estimate = layer.sparsity.before_update(layer.trained, 1.0, 0.1).rows(slice(None))
    assert estimate.shape == (8, 36) and torch.equal(estimate[:, :4], estimate[:, 4:8])


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_half_precision_is_too_narrow_for_sums_of_squares(storage):
    layer = estimating(nn.Linear(16, 8), storage)
    layer.sparsity.expect_gradient(layer.trained, False)
    layer.half()
    with pytest.raises(
        ValueError,
        match=r"a layer cannot estimate its dense gradient: it was turned to float16 after sparsify\(\), too narrow",
    ):
        layer.sparsity.expect_gradient(layer.trained, True)


@pytest.mark.parametrize("storage", ["dense", "compressed"])
def test_without_a_backward_pass_there_is_no_estimate(storage):
    layer = estimating(nn.Linear(16, 8), storage)
    assert layer.sparsity.before_update(layer.trained, 1.0, 0.1) is None
