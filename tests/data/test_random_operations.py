"""RandAugment and TrivialAugment do what torchvision does, many images at once."""

import inspect

import pytest
import torch
from torchvision.transforms import v2

from cutwork.data.feed import chance_of
from cutwork.data.random_operations import (
    BINS,
    OPERATIONS,
    RAND_LIMITS,
    TRIVIAL_LIMITS,
    RandAugment,
    TrivialAugment,
    operate,
)

THEIRS = {RAND_LIMITS: v2.RandAugment, TRIVIAL_LIMITS: v2.TrivialAugmentWide}


def photographs(num_images, channels, size):
    """Return smooth images with noise on them, in whole steps of 1/255."""
    coarse = torch.rand(num_images, channels, 5, 5, generator=chance_of(0))
    images = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1)
    noise = 0.05 * torch.rand(images.shape, generator=chance_of(1))
    return (images + noise).clamp(0, 1).mul(255).round().to(torch.uint8)


def their_result(image, name, strength, sign, limits):
    theirs = THEIRS[limits]()
    magnitudes, signed = theirs._AUGMENTATION_SPACE[name]
    found = magnitudes(BINS, *image.shape[-2:])
    magnitude = 0.0 if found is None else float(found[strength]) * (sign if signed else 1)
    nearest = v2.InterpolationMode.NEAREST
    return theirs._apply_image_or_video_transform(
        image, name, magnitude, interpolation=nearest, fill={torch.Tensor: None}
    )


@pytest.mark.parametrize("limits", THEIRS, ids=["rand", "trivial"])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("channels", "size"), [(3, (32, 32)), (1, (28, 30))], ids=["colour", "grey"])
def test_each_operation_does_what_torchvisions_does(name, limits, channels, size):
    images = photographs(2 * BINS, channels, size)
    strengths, signs = torch.arange(BINS).repeat(2), torch.tensor([1, -1]).repeat_interleave(BINS)
    ours = OPERATIONS[name](images / 255, strengths / (BINS - 1), signs, limits)
    assert ours.min() >= 0 and ours.max() <= 1
    for image, found, strength, sign in zip(images, ours, strengths.tolist(), signs.tolist(), strict=True):
        if name.startswith("Translate") and limits is TRIVIAL_LIMITS and strength == 15:
            # Half of 32 pixels, which their table in single precision makes 15.999999 and cuts to 15.
            continue
        theirs = their_result(image, name, strength, sign, limits) / 255
        # They cut to whole steps, twice where grey is formed; a pixel on the border between two may go to either.
        near = (found - theirs).abs() <= 2 / 255
        assert near.float().mean() >= 0.94, (strength, sign)


def test_the_operations_are_torchvisions():
    for theirs in THEIRS.values():
        assert [*OPERATIONS] == [*theirs._AUGMENTATION_SPACE]
    signature = inspect.signature(v2.RandAugment).parameters
    assert (signature["num_ops"].default, signature["magnitude"].default) == (
        RandAugment().number,
        RandAugment().strength,
    )
    assert signature["num_magnitude_bins"].default == BINS


def test_images_draw_all_operations_and_both_signs(monkeypatch):
    seen = {}
    for name in OPERATIONS:

        def note(images, level, sign, limits, name=name):
            seen[name] = sorted(sign.tolist()), sorted({*(level * 30).round().int().tolist()})
            return images

        monkeypatch.setitem(OPERATIONS, name, note)
    images = torch.rand(1400, 1, 2, 2)
    TrivialAugment()(images, chance_of(0))
    assert [*seen] == [*OPERATIONS]
    assert all(60 < len(signs) < 150 and 0.3 < signs.count(1) / len(signs) < 0.7 for signs, _ in seen.values())
    assert {*range(BINS)} == {level for _, levels in seen.values() for level in levels}
    seen.clear()
    RandAugment(strength=7)(images, chance_of(0))
    assert all(levels == [7] for _, levels in seen.values())


def test_an_image_is_changed_as_alone_by_what_it_drew():
    images = photographs(64, 3, (16, 16)) / 255
    changed = operate(images, torch.full((64,), 9), RAND_LIMITS, chance_of(5))
    chance = chance_of(5)
    drawn = torch.randint(len(OPERATIONS), (64,), generator=chance)
    signs = 1 - 2 * torch.randint(2, (64,), generator=chance)
    for image in range(64):
        one = slice(image, image + 1)
        operation = [*OPERATIONS.values()][drawn[image]]
        alone = operation(images[one], torch.tensor([0.3]), signs[one], RAND_LIMITS)
        torch.testing.assert_close(changed[one], alone, atol=1e-6, rtol=0)


def test_several_operations_are_done_one_after_the_other():
    images = photographs(32, 3, (16, 16)) / 255
    chance = chance_of(3)
    once = operate(images, torch.full((32,), 5), RAND_LIMITS, chance)
    twice = operate(once, torch.full((32,), 5), RAND_LIMITS, chance)
    assert torch.equal(RandAugment(2, 5)(images, chance_of(3)), twice)
    assert not torch.equal(once, twice)
