"""Augmentations by their names, in the order and at the place where they belong."""

from itertools import islice

import pytest
import torch

from cutwork.data import make_feed
from cutwork.data.augment import AFTER, BEFORE, MIXES, Augmentations
from cutwork.data.feed import Feeding, chance_of
from cutwork.data.framing import Crop, Erasing, Flip
from cutwork.data.mixing import Cutmix, Mixup
from cutwork.data.random_operations import RandAugment

ALL = (*BEFORE, *AFTER, *MIXES)


def test_names_with_numbers_are_read():
    found = Augmentations.parse(["flip", "randaugment:1,14", "crop:3", "cutmix", "erasing:0.1", "mixup:0.8"])
    assert found.before == (Flip(), RandAugment(1, 14), Crop(3))
    assert found.after == (Erasing(0.1),)
    assert found.mixes == (Cutmix(1.0), Mixup(0.8))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flop", r"unknown augmentation 'flop' \(did you mean 'flip'\?\); write 'crop', "),
        ("mix-up:0.2", r"'mix-up:0.2' \(did you mean 'mixup'\?\)"),
        ("crop:a", "augmentation 'crop:a': invalid literal"),
        ("crop:0", "augmentation 'crop:0': padding=0: it must be a whole number of pixels"),
        ("crop:1,2", "augmentation 'crop:1,2': it takes 1 numbers at most"),
        ("trivialaugment:3", "augmentation 'trivialaugment:3': it takes 0 numbers at most"),
        ("mixup:0", "augmentation 'mixup:0': alpha=0: it must be above 0"),
        ("cutmix:-1", "augmentation 'cutmix:-1': alpha=-1: it must be above 0"),
        ("erasing:1.5", "augmentation 'erasing:1.5': probability=1.5: it must be from 0 to 1"),
        ("rotate:0", "degrees=0: it must be above 0"),
        ("resized-crop:0", "least=0: it must be above 0"),
        ("randaugment:2,31", "strength=31: it must be a whole number from 0 to 30"),
        ("randaugment:0", "number=0: it must be a whole number of operations"),
    ],
)
def test_what_cannot_be_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        make_feed("digits", Feeding(augment=(name,)))


def test_the_same_name_twice_is_refused():
    with pytest.raises(ValueError, match="the augmentation 'crop' is asked for twice"):
        Augmentations.parse(["crop", "flip", "crop:2"])


@pytest.mark.parametrize("name", ALL)
def test_an_augmented_epoch_goes_on_from_any_step(name):
    """As a run does that was killed: in a new feed, whatever chance PyTorch was at."""
    feeding = Feeding(batch=100, seed=3, augment=(name,))
    whole = list(make_feed("digits", feeding).training(epoch=1))
    torch.manual_seed(1)
    again = make_feed("digits", feeding).training(epoch=1, start=11)
    for (x, y), (x2, y2) in zip(islice(whole, 11, None), again, strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    plain = next(make_feed("digits", Feeding(batch=100, seed=3)).training(epoch=1))
    assert not torch.equal(whole[0][0], plain[0])
    assert whole[0][0].shape == plain[0].shape


def test_mixed_labels_are_shares_of_classes():
    images, labels = next(make_feed("digits", Feeding(batch=64, augment=("mixup", "cutmix"))).training(0))
    assert labels.shape == (64, 10) and labels.dtype == torch.float32
    torch.testing.assert_close(labels.sum(1), torch.ones(64))
    assert images.shape == (64, 1, 8, 8)


def test_one_of_several_mixes_is_chosen_for_each_batch():
    both = Augmentations.parse(["mixup:8", "cutmix"])
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4)
    # Cutmix leaves pixels as they are, mixup none.
    kept = [(both.mix(images, labels, 4, chance_of(seed))[0] == images).any().item() for seed in range(40)]
    assert 10 < sum(kept) < 30


def test_what_is_erased_is_the_mean_and_test_images_are_left_alone():
    feed = make_feed("digits", Feeding(batch=64, augment=("erasing:1.0",)))
    images, _ = next(feed.training(0))
    assert ((images == 0).sum((1, 2, 3)) >= 1).all()
    plain = make_feed("digits", Feeding(batch=64))
    for (x, _), (y, _) in zip(feed.testing(), plain.testing(), strict=True):
        assert torch.equal(x, y)


def test_processes_and_epochs_augment_differently():
    def first(epoch=0, **given):
        feed = make_feed("digits", Feeding(batch=32, augment=("crop",), **given))
        # The same images for all, so that only what is done to them differs.
        feed.data.train_images.copy_(feed.data.train_images[:1].expand_as(feed.data.train_images).clone())
        return next(feed.training(epoch))[0]

    alone = first()
    assert torch.equal(alone, first())
    for other in (first(epoch=1), first(seed=1), first(world=2, rank=1)):
        assert not torch.equal(alone, other)
