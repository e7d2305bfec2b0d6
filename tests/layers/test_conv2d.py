import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cutwork as cw

OPTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "padding": "valid", "bias": False},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "replicate", "groups": 2},
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": 1, "groups": 8},
]


@pytest.mark.parametrize("pattern", ["unstructured", "block:4", "vector:4", "shuffled:4", "2:4"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_the_dense_convolution_with_a_masked_weight(options, pattern):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, **options)
    if pattern == "2:4" and layer.weight[0].numel() % 4:
        with pytest.raises(ValueError, match="cannot tile 9 inputs"):
            cw.sparsify(layer, pattern)
        return
    twin = nn.Conv2d(8, 16, **options)
    cw.sparsify(layer, pattern, density=None if pattern == "2:4" else 0.3)
    twin.load_state_dict({name: value for name, value in layer.state_dict().items() if "sparsity" not in name})
    x = torch.randn(2, 8, 9, 9)
    assert torch.equal(layer(x), twin(x))
    layer(x).square().sum().backward()
    twin(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, twin.weight.grad * layer.sparsity.mask)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_growth_can_be_estimated_for_every_convolution(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, **options))
    method = cw.RigL(every=1, until=9, estimate=True)
    sparsifier = cw.sparsify(model, "unstructured", density=0.3, method=method, track=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier.attach(optimizer)
    model(torch.randn(2, 8, 9, 9)).square().sum().backward()
    optimizer.step()
    assert sparsifier.exploration["0"].turnover > 0


def test_unbatched_input_and_channels_last_work():
    layer = nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last)
    cw.sparsify(layer, "block:4", density=0.3)
    x = torch.randn(8, 9, 9)
    assert torch.allclose(layer(x), F.conv2d(x, layer.weight, layer.bias), atol=1e-6)
    assert layer.sparsity.mask.shape == layer.weight.shape
