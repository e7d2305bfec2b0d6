from itertools import pairwise

import pytest
import torch
from torch import nn

import cutwork as cw


def train(model, sparsifier, steps, lr=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    sparsifier.attach(optimizer)
    torch.manual_seed(1)
    x, y = torch.randn(32, 16), torch.randint(8, (32,))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield model[0]


def make(pattern="block:4", **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8, bias=False))
    return model, cw.sparsify(model, pattern, density=0.25, method=cw.Spartan(**options), steps=10)


def test_density_falls_and_sharpness_rises_along_lines_until_masks_stay():
    model, sparsifier = make(thin_until=4, until=8)
    layers = train(model, sparsifier, 10)
    seen = [(float(layer.sparsity.mask.float().mean()), float(layer.sparsity.sharpness)) for layer in layers]
    densities, sharpness = zip(*seen, strict=True)
    # Of eight tiles, as many as the line from 1 to a quarter says.
    assert densities == (0.875, 0.625, 0.5, *[0.25] * 7)
    assert sharpness == pytest.approx([1 + step / 8 * (20 * 4 - 1) for step in range(1, 8)] + [0, 0, 0], rel=1e-6)


def test_masks_keep_the_largest_and_then_stay():
    model, sparsifier = make(thin_until=2, until=6)
    masks = []
    for layer in train(model, sparsifier, 10):
        masks.append(layer.sparsity.mask.clone())
        if sparsifier.steps_done < 6:
            assert torch.equal(
                masks[-1], cw.parse("block:4").project(layer.weight.detach().abs(), masks[-1].float().mean())
            )
    assert all(torch.equal(mask, masks[5]) for mask in masks[6:])


def test_only_every_so_many_steps_masks_move_but_shares_follow_the_weight_at_each():
    model, sparsifier = make("unstructured", every=3, thin_until=0, until=9, start_density=0.25)
    masks, thresholds = [], []
    for layer in train(model, sparsifier, 9, lr=1.0):
        masks.append(layer.sparsity.mask.clone())
        thresholds.append(float(layer.sparsity.threshold))
    moved = [not torch.equal(one, other) for one, other in pairwise(masks)]
    assert {step + 2 for step, is_moved in enumerate(moved) if is_moved} <= {3, 6, 9}
    assert any(moved)
    assert len(set(thresholds[:8])) == 8


def test_weights_outside_the_mask_train_until_it_stays():
    model, sparsifier = make(thin_until=2, until=5)
    before, outside = None, []
    for layer in train(model, sparsifier, 8):
        weight = layer.weight.detach().clone()
        if before is not None:
            outside.append(bool((weight != before)[~layer.sparsity.mask].any()))
        before = weight
    # The fifth step ends with the weights multiplied by their shares.
    assert outside == [True] * 4 + [False] * 3


def test_an_average_follows():
    model, sparsifier = make(thin_until=2, until=5)
    average = torch.optim.swa_utils.AveragedModel(model)
    sparsifier.take_along(average)
    for _ in train(model, sparsifier, 8):
        average.update_parameters(model)
        own = average.module[0].sparsity
        assert torch.equal(own.mask, model[0].sparsity.mask)
        assert own.is_soft == model[0].sparsity.is_soft


def test_in_groups_of_four_the_two_largest_of_each_end_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8, bias=False))
    sparsifier = cw.sparsify(model, "2:4", method=cw.Spartan(thin_until=2, until=6, sharpness=1e4), steps=10)
    *_, layer = train(model, sparsifier, 5)
    kept = (layer.sparsity(layer.weight) / layer.weight).detach()
    assert torch.equal(layer.sparsity.mask, cw.parse("2:4").project(layer.weight.detach().abs(), 0.5))
    # Nearly: two of a group may be alike.
    assert float(kept[layer.sparsity.mask].mean()) > 0.97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharpness": 0}, "sharpness=0 must be a number above 0"),
        ({"start_sharpness": float("inf")}, "start_sharpness=inf must be"),
        ({"thin_until": 0.9}, "masks stay before they have the density asked for"),
        ({"every": 0}, "every=0"),
        ({"start_density": 2.0}, "start_density"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cw.Spartan(**options)
