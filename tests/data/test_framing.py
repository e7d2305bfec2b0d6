"""Cropping, flipping, turning and erasing: each image for itself, and as torchvision does it."""

import pytest
import torch
from torchvision.transforms import v2

from cutwork.data.feed import chance_of
from cutwork.data.framing import Crop, Erasing, Flip, ResizedCrop, Rotate, rotated

IMAGES = torch.rand(64, 3, 32, 32, generator=chance_of(0))


@pytest.mark.parametrize(("size", "padding"), [(32, 4), (28, 4), (64, 8), (8, 1)])
def test_a_crop_is_one_of_those_of_the_padded_image(size, padding):
    images = torch.rand(200, 1, size, size, generator=chance_of(0))
    moved, found = Crop()(images, chance_of(1)), set()
    padded = v2.functional.pad(images, [padding])
    for image, result in zip(padded, moved, strict=True):
        places = [
            (row, column)
            for row in range(2 * padding + 1)
            for column in range(2 * padding + 1)
            if image[0, row + size // 2, column + size // 2] == result[0, size // 2, size // 2]
        ]
        assert any(torch.equal(v2.functional.crop(image, *place, size, size), result) for place in places)
        found.update(places)
    assert {row for row, _ in found} == {column for _, column in found} == {*range(2 * padding + 1)}


def test_half_of_the_images_are_mirrored():
    flipped = Flip()(IMAGES, chance_of(1))
    mirrored = [torch.equal(image, result.flip(-1)) for image, result in zip(IMAGES, flipped, strict=True)]
    kept = [torch.equal(image, result) for image, result in zip(IMAGES, flipped, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 20 < sum(mirrored) < 44


@pytest.mark.parametrize("size", [(32, 32), (24, 30)])
def test_an_angle_means_what_it_means_to_torchvision(size):
    images = IMAGES[:, :, : size[0], : size[1]]
    angles = torch.linspace(-180, 180, len(images))
    for image, result, angle in zip(images, rotated(images, angles), angles.tolist(), strict=True):
        same = result == v2.functional.rotate(image, angle)
        assert same.float().mean() > 0.97


def test_images_are_turned_by_up_to_the_angle_to_both_sides(monkeypatch):
    asked = []
    monkeypatch.setattr("cutwork.data.framing.rotated", lambda images, angles: asked.append(angles) or images)
    Rotate(20)(torch.rand(1000, 1, 1, 1), chance_of(2))
    assert -20 <= asked[0].min() < -19 and 19 < asked[0].max() <= 20


def test_erased_rectangles_are_as_large_and_as_many_as_torchvisions():
    images = torch.ones(4000, 1, 20, 30)
    ours = Erasing(0.25)(images, chance_of(1))
    torch.manual_seed(0)
    erase = v2.RandomErasing(p=0.25)
    theirs = torch.stack([erase(image) for image in images])
    for erased in (ours, theirs):
        holes = [one[0] for one in 1 - erased if one.any()]
        # Each is a full rectangle.
        assert all(one.sum() == one.any(0).sum() * one.any(1).sum() for one in holes)
        assert 0.23 < len(holes) / 4000 < 0.27
        shares = torch.stack([one.mean() for one in holes])
        assert shares.min() >= 0.015 and shares.max() <= 0.35
        assert 0.16 < shares.mean() < 0.19
    # Every place is erased about equally often by both.
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.03


def test_a_resized_crop_is_torchvisions():
    found, chance = ResizedCrop()(IMAGES[:4], chance_of(4)), chance_of(4)
    torch.manual_seed(int(torch.randint(2**32, (), generator=chance)))
    for image, result in zip(IMAGES, found, strict=False):
        assert torch.equal(v2.RandomResizedCrop((32, 32))(image), result)


def test_pytorchs_own_chance_is_left_alone():
    before = torch.get_rng_state()
    ResizedCrop()(IMAGES[:2], chance_of(4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "change", [Crop(), Flip(), Rotate(), ResizedCrop(), Erasing()], ids=lambda one: type(one).__name__
)
def test_the_same_chance_does_the_same_and_the_images_stay(change):
    images = IMAGES[:8].clone()
    first = change(images, chance_of(1))
    assert torch.equal(images, IMAGES[:8])
    assert torch.equal(first, change(images, chance_of(1)))
    assert not torch.equal(first, change(images, chance_of(2)))
