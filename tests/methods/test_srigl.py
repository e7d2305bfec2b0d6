import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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


def test_the_bar_stays_where_it_was_when_a_row_was_given_up():
    """Four rows of 16 at a quarter: fan-in 4, then 5 on three rows; of them 3 salient units are enough, 2 are not."""
    weight, grad = torch.zeros(4, 16), torch.zeros(4, 16)
    for row, sizes in enumerate([[9, 9, 9, 0.1, 0.1], [8, 8, 0.2, 0.2, 0.2], [7, 7, 7, 7, 7]]):
        weight[row, :5] = torch.tensor(sizes)
    method = SRigL(every=1, until=100, fraction=cw.constant(0.34), min_salient=0.8)
    # Of 15 kept units 10 stay; the five largest gradients lie in the third row.
    grad[2, 8:13] = 1.0
    new = method.move(view(weight, weight != 0, grad))
    assert new.any(1).tolist() == [True, False, True, False]
    assert new[0, :3].all()


@settings(max_examples=200)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.25, 0.5]), st.sampled_from([0.0, 0.3, 0.5, 0.95]))
def test_a_move_is_that_of_the_authors_row_by_row(seed, density, min_salient):
    torch.manual_seed(seed)
    rows, columns = 6, 12
    weight, grad, given_up = torch.randn(rows, columns), torch.randn(rows, columns), int(torch.randint(0, 3, ()))
    grad[0] *= 0.01
    fan_in = max(1, int(density * rows * columns) // (rows - given_up))
    mask = (torch.rand(rows, columns).argsort(1).argsort(1) < fan_in) & (torch.arange(rows) >= given_up)[:, None]
    weight *= mask
    method = SRigL(every=1, until=100, fraction=cw.constant(0.3), min_salient=min_salient)
    new = method.move(view(weight, mask, grad, density=density))
    assert new.tolist() == move_of_the_authors(weight.abs().tolist(), grad.abs().tolist(), density, 0.3, min_salient)


def move_of_the_authors(weight, grad, density, fraction, min_salient):
    """Follow the published update in plain loops, except that a row too full keeps its largest weights."""
    rows, columns = len(weight), len(weight[0])
    places = [(row, column) for row in range(rows) for column in range(columns)]
    kept = sum(weight[row][column] > 0 for row, column in places)
    pruned = int(kept * fraction)
    total = int(rows * columns * density)
    by_weight = sorted(places, key=lambda place: -weight[place[0]][place[1]])
    by_grad = sorted(places, key=lambda place: -grad[place[0]][place[1]])
    salient = {*by_weight[: kept - pruned], *by_grad[:pruned]}
    counts = [sum((row, column) in salient for column in range(columns)) for row in range(rows)]
    bar = max(1, int(min_salient * (total // rows))) if min_salient else 0
    rows_needed = math.ceil(kept / columns)
    bar = min(bar, sorted(counts, reverse=True)[rows_needed])
    active = [row for row in range(rows) if counts[row] >= bar]
    fan_in = total // len(active)
    staying = [place for place in by_weight if place[0] in active and weight[place[0]][place[1]] > 0][: kept - pruned]
    chosen: set = set()
    for row in active:
        mine = [place for place in staying if place[0] == row][:fan_in]
        others = [place for place in by_grad if place[0] == row and place not in mine]
        chosen |= {*mine, *others[: fan_in - len(mine)]}
    return [[(row, column) in chosen for column in range(columns)] for row in range(rows)]


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
