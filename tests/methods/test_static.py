import torch

from cutwork.methods import METHODS, Static, View, find_method, generator_for
from cutwork.patterns import Unstructured
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.numbers import WholeNumbers


def test_a_static_mask_never_moves_and_never_costs_a_dense_gradient():
    weight = torch.rand(4, 4)
    numbers = WholeNumbers(Unstructured(), weight, weight > 0.5)
    view = View(Unstructured(), 0.5, Layout.of(weight), numbers, None, 100, generator_for(0, 100, "a"), False)
    assert Static().move(view) is view.mask
    assert not any(Static().due(step) for step in range(1000))
    assert Static().dense_gradient_share == 0
    assert not Static().needs_gradient


def test_the_shuffled_block_methods_are_compositions():
    assert METHODS["ssb"]() == Static()
    assert METHODS["dsb"]() == METHODS["rigl"]()
    assert find_method(Static()) == Static()
