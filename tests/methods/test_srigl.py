import pytest
import torch
from torch import nn

import cutwork as cw
from cutwork.methods import SRigL, View, generator_for
from cutwork.patterns import parse
from cutwork.sparsity.gradient import WholeGradient
from cutwork.sparsity.layout import Layout
from cutwork.sparsity.numbers import WholeNumbers


def view(weight, mask, grad, *, pattern="unstructured", density=0.25, step=10, is_last=False):
    numbers = WholeNumbers(parse(pattern), weight, mask, None if grad is None else WholeGradient(grad))
    return View(parse(pattern), density, Layout.of(weight), numbers, None, step, generator_for(0, step, "a"), is_last)


def test_every_row_starts_with_the_same_fan_in():
    weight = torch.randn(10, 16)
    mask = SRigL().start(view(weight, weight > 9, None), cw.magnitude)
    assert mask.sum(1).tolist() == [4] * 10


def test_rows_with_few_salient_weights_are_given_up_and_their_share_goes_to_the_others():
    torch.manual_seed(0)
    weight, grad = torch.rand(8, 16) + 1, torch.rand(8, 16) * 1e-3
    mask = SRigL().start(view(weight, weight > 9, None), cw.magnitude)
    weight = torch.where(mask, weight, 0)
    weight[:2] *= 1e-6
    method = SRigL(every=1, until=100, fraction=cw.constant(0.3), min_salient=0.5)
    grad[:2] = 0
    new = method.move(view(weight, mask, grad))
    assert new[:2].sum() == 0
    assert new[2:].sum(1).tolist() == [32 // 6] * 6
    kept_all = method.move(view(weight, mask, grad, is_last=True))
    assert kept_all.sum(1).tolist() == [4] * 8


def test_a_row_that_was_given_up_comes_back_when_its_gradient_is_large():
    weight = torch.zeros(4, 16)
    mask = torch.zeros(4, 16, dtype=torch.bool)
    mask[1:, :5] = True
    weight[mask] = 1.0
    grad = torch.zeros(4, 16)
    grad[0, :4] = 100.0
    new = SRigL(every=1, until=100, fraction=cw.constant(0.3)).move(view(weight, mask, grad))
    assert new[0, :4].all()


def test_the_largest_weights_of_a_row_stay_and_the_largest_gradients_grow():
    weight = torch.tensor([[4.0, 3, 2, 1, 0, 0, 0, 0], [4, 3, 2, 1, 0, 0, 0, 0]])
    grad = torch.tensor([[0.0, 0, 0, 0, 1, 2, 3, 4], [0, 0, 0, 0, 4, 3, 2, 1]])
    method = SRigL(every=1, until=100, fraction=cw.constant(0.5), min_salient=0.0)
    new = method.move(view(weight, weight > 0, grad, density=0.5))
    assert new.int().tolist() == [[1, 1, 0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 1, 1, 0, 0]]


def test_at_least_so_many_rows_survive_as_can_hold_the_weights():
    weight = torch.rand(4, 8)
    mask = torch.ones(4, 8, dtype=torch.bool)
    method = SRigL(every=1, until=100, fraction=cw.constant(1.0), min_salient=1.0)
    new = method.move(view(weight, mask, torch.eye(4, 8) * 0, density=1.0))
    assert new.all()


@pytest.mark.parametrize("pattern", ["unstructured", "block:4", "vector:4"])
def test_fan_in_stays_constant_through_training(pattern):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 16))
    sparsifier = cw.sparsify(model, pattern, density=0.3, method=SRigL(every=2, until=20))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    sparsifier.attach(optimizer)
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(16, 32)).square().sum().backward()
        optimizer.step()
        for layer in sparsifier.layers.values():
            fan_in = layer.sparsity.mask.sum(1)
            assert len(set(fan_in[fan_in > 0].tolist())) == 1
            assert fan_in.sum() <= 0.3 * layer.weight.numel() + 16


def test_a_share_of_the_fan_in_is_a_share():
    with pytest.raises(ValueError, match="from 0 to 1"):
        SRigL(min_salient=2)
    assert SRigL(every=10).dense_gradient_share == 1 / 11
