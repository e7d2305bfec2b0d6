import pytest
import torch
from torch import nn

from cutwork.transforms import factorized
from cutwork.transforms.budget import factor_width

from . import members

# Channels: widths with both factors sparse, and with the second dense, at densities 0.5, 0.25 and 0.05.
GOLDEN = {
    (64, 128): [(210, 178), (419, 272), (2095, 471)],
    (256, 256): [(461, 419), (922, 709), (4608, 1589)],
}


@pytest.mark.parametrize("channels", GOLDEN)
def test_widths_are_the_published_ones(channels):
    inputs, outputs = 9 * channels[0], channels[1]
    for density, (both, one) in zip((0.5, 0.25, 0.05), GOLDEN[channels], strict=True):
        assert factor_width(inputs, outputs, density) == both
        assert factor_width(inputs, outputs, density, dense_second=True) == one


def test_the_first_has_the_kernel_and_the_second_mixes():
    model, x = nn.Sequential(nn.Conv2d(64, 64, 3, stride=2)), torch.rand(1, 64, 5, 5)
    larger = factorized(model, 0.25, inputs=x, layers="*", between="norm+relu", dense_second=True)
    pair = larger.model[0]
    assert pair.first.weight.shape == (178, 64, 3, 3)
    assert pair.second.weight.shape == (64, 178, 1, 1)
    assert (pair.first.stride, pair.second.stride) == ((2, 2), (1, 1))
    assert (pair.first.bias is None, pair.second.bias is None) == (True, False)
    assert [type(each) for each in pair.between] == [nn.BatchNorm2d, nn.ReLU]
    assert list(larger.densities) == ["0.first"]


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (40, 40), (20, 33)])
def test_copies_have_shares_of_the_weight(shape):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(*shape)), torch.rand(3, shape[0])
    pair = factorized(model, 0.3, inputs=x, layers="*", weights="copy").model[0]
    product = pair.second.weight @ pair.first.weight
    torch.testing.assert_close(product, model[0].weight)
    torch.testing.assert_close(pair.first.weight.norm(), pair.second.weight.norm())


def test_a_zero_layer_stays_zero_and_can_learn():
    model, x = nn.Sequential(nn.Linear(16, 16)), torch.rand(3, 16)
    with torch.no_grad():
        model[0].weight.zero_()
    pair = factorized(model, 0.25, inputs=x, layers="*").model[0]
    assert not pair.second.weight.any()
    (pair(x) - 1).square().sum().backward()
    assert pair.second.weight.grad.any()


def test_what_cannot_be_is_refused():
    model, x = members.make_model("mlp")
    with pytest.raises(ValueError, match=r"unknown between='batch'; write 'linear', 'norm', 'relu', 'norm.relu'"):
        factorized(model, 0.5, inputs=x, between="batch")
    with pytest.raises(ValueError, match="weights='copy' computes the same only with between='linear'"):
        factorized(model, 0.5, inputs=x, between="norm", weights="copy")
    with pytest.raises(ValueError, match=r"^2: 40 units between 64 inputs and 64 outputs cannot hold its weight"):
        factorized(model, 0.8, inputs=x, weights="copy")
