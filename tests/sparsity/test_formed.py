import pytest
import torch
from torch import nn

import cutwork as cw

LAYERS = {
    "linear": (lambda: nn.Linear(14, 23), (5, 14)),
    "convolution": (lambda: nn.Conv2d(6, 10, 3, stride=2, padding=1), (2, 6, 7, 7)),
    "convolution in groups": (lambda: nn.Conv2d(6, 10, 3, groups=2, dilation=2), (2, 6, 7, 7)),
}


def backward(kind, pattern, *, calls=1):
    """Go forward and back through a dense and a compressed layer; return both, and their loss's gradient scale."""
    torch.manual_seed(0)
    build, shape = LAYERS[kind]
    dense = build().double()
    layer = nn.Sequential(build().double())
    layer[0].load_state_dict(dense.state_dict())
    sparsifier = cw.sparsify(layer, pattern, density=0.4, method=cw.RigL(every=1, until=9), storage="compressed")
    sparsifier.attach(torch.optim.SGD(layer.parameters(), lr=0.1))
    dense.weight.data = layer[0].weight.detach().clone()
    for _ in range(calls):
        x = torch.randn(shape).double()
        for each in (dense, layer):
            each(x).square().sum().backward()
    return dense, layer[0]


@pytest.mark.parametrize("calls", [1, 3])
@pytest.mark.parametrize("pattern", ["block:4", "shuffled:4"])
@pytest.mark.parametrize("kind", LAYERS)
def test_any_rows_of_the_dense_gradient_are_formed(kind, pattern, calls):
    dense, layer = backward(kind, pattern, calls=calls)
    index = layer.sparsity
    formed = index.before_update(layer.trained, 1.0, 0.1)
    expected = index.layout.to_matrix(dense.weight.grad)
    for outputs in (slice(None), slice(3, 8), torch.tensor([7, 0, 9])):
        torch.testing.assert_close(formed.rows(outputs), expected[outputs])
    torch.testing.assert_close(formed.kept(index.topology), index.topology.gather(expected))


def test_it_has_the_scale_that_the_gradient_of_the_values_has_got():
    dense, layer = backward("linear", "block:4")
    layer.trained.grad *= 1 / 64
    formed = layer.sparsity.before_update(layer.trained, 1.0, 0.1)
    torch.testing.assert_close(formed.rows(slice(None)), dense.weight.grad / 64)


def test_without_a_gradient_at_what_is_kept_it_is_left_as_it_is():
    dense, layer = backward("linear", "block:4")
    layer.trained.grad.zero_()
    formed = layer.sparsity.before_update(layer.trained, 1.0, 0.1)
    torch.testing.assert_close(formed.rows(slice(None)), dense.weight.grad)


def test_what_is_not_finite_is_found():
    _, layer = backward("linear", "block:4")
    assert layer.sparsity.before_update(layer.trained, 1.0, 0.1).is_finite()
    layer.trained.grad[0, 0, 0] = torch.inf
    assert not layer.sparsity.before_update(layer.trained, 1.0, 0.1).is_finite()


def test_where_the_first_outputs_got_no_gradient_the_others_show_its_scale():
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(16, 64).double())
    sparsifier = cw.sparsify(layer, "block:4", density=0.4, method=cw.RigL(every=1, until=9), storage="compressed")
    sparsifier.attach(torch.optim.SGD(layer.parameters(), lr=0.1))
    x = torch.randn(5, 16).double()
    y = layer(x)
    y[:, 32:].square().sum().backward()
    trained = layer[0].trained
    trained.grad *= 1 / 8
    rows = layer[0].sparsity.before_update(trained, 1.0, 0.1).rows(slice(None))
    expected = torch.cat([torch.zeros(32, 16), (2 * y[:, 32:]).T @ x / 8]).detach()
    torch.testing.assert_close(rows, expected)
