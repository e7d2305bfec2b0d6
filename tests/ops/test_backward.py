from types import SimpleNamespace

import pytest
import torch

from cutwork.ops import backward, dispatch
from cutwork.ops.activations import ACTIVATIONS
from cutwork.ops.backward import check_has_gradient, gradient_of, with_nones
from cutwork.ops.block_linear import input_gradient


@pytest.mark.parametrize("after", ACTIVATIONS)
def test_only_a_product_without_an_activation_has_a_gradient(after):
    if after == "none":
        check_has_gradient(after)
        return
    with pytest.raises(ValueError, match="has no gradient of its own; apply the activation apart"):
        check_has_gradient(after)


def test_a_kernel_computes_a_gradient_only_where_no_graph_of_it_is_recorded(monkeypatch):
    def kernel():
        raise AssertionError("not to be called")

    monkeypatch.setitem(dispatch.KERNELS, (input_gradient._qualname, "cpu"), kernel)
    dy = torch.ones(1)
    assert gradient_of(input_gradient, dy) is input_gradient
    with torch.no_grad():
        assert gradient_of(input_gradient, dy) is kernel
        monkeypatch.setattr(backward, "can_skip_dispatcher", lambda dy: False)
        assert gradient_of(input_gradient, dy) is input_gradient


def test_every_input_of_a_product_has_a_gradient_or_none():
    dx = torch.ones(1)
    assert with_nones(SimpleNamespace(needs_input_grad=(True,) * 4), dx, None) == (dx, None, None, None)
