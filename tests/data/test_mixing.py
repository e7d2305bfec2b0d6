"""Mixing images and labels as torchvision does."""

import math

import pytest
import torch
from torchvision.transforms import v2

from cutwork.data.feed import chance_of
from cutwork.data.mixing import Cutmix, Mixup

IMAGES = torch.rand(16, 3, 20, 30, generator=chance_of(0))
LABELS = torch.arange(16) % 5
SHARES = torch.nn.functional.one_hot(LABELS, 5).float()


@pytest.mark.parametrize("seed", range(5))
def test_mixup_is_torchvisions_for_the_same_weight(seed):
    images, shares = Mixup(0.8)(IMAGES, SHARES, chance_of(seed))
    weight = shares[1, LABELS[1]].item()
    theirs = v2.MixUp(alpha=0.8, num_classes=5)
    theirs._dist.sample = lambda shape: torch.tensor([weight])
    their_images, their_shares = theirs(IMAGES, LABELS)
    torch.testing.assert_close(images, their_images)
    torch.testing.assert_close(shares, their_shares)


@pytest.mark.parametrize("seed", range(20))
def test_cutmix_is_torchvisions_for_the_same_rectangle(seed):
    images, shares = Cutmix()(IMAGES, SHARES, chance_of(seed))
    changed = (images != IMAGES).all(dim=(0, 1))
    if not changed.any():
        assert torch.equal(shares, SHARES)
        return
    rows, columns = (changed.any(dim).nonzero().squeeze(1).tolist() for dim in (1, 0))
    box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    area = (box[2] - box[0]) * (box[3] - box[1])
    params = {"labels": LABELS, "batch_size": 16, "box": box, "lam_adjusted": 1 - area / 600}
    theirs = v2.CutMix(num_classes=5)
    assert torch.equal(images, theirs.transform(IMAGES, params))
    torch.testing.assert_close(shares, theirs.transform(LABELS, params))
    torch.testing.assert_close(shares.sum(1), torch.ones(16))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_weights_spread_as_those_of_a_beta_distribution(alpha):
    weights = torch.tensor([Mixup(alpha)(IMAGES, SHARES, chance_of(seed))[1][1, 1].item() for seed in range(2000)])
    assert abs(weights.mean() - 0.5) < 0.03
    assert abs(weights.std() - math.sqrt(1 / (4 * (2 * alpha + 1)))) < 0.02
