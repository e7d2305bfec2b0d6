"""RandAugment and TrivialAugment: images draw operations, and all that drew the same one get it at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Generator, Tensor

from cutwork.data.framing import OneImage, resampled, rotated
from cutwork.data.vision import transforms

# Strengths are counted from 0 to 30, as in the papers.
BINS = 31
MAX_PIXEL = 255


@final
@dataclass(frozen=True)
class Limits:
    """What operations do at full strength; `moves` says how many pixels of a side of this size."""

    shear: float
    moves: Callable[[int], float]
    degrees: float
    blend: float
    bits: int


RAND_LIMITS = Limits(shear=0.3, moves=lambda size: 150 / 331 * size, degrees=30, blend=0.9, bits=4)
TRIVIAL_LIMITS = Limits(shear=0.99, moves=lambda size: 32, degrees=135, blend=0.99, bits=6)


@final
@dataclass(frozen=True)
class RandAugment:
    """Do `number` operations to each image, one after the other, all of the same strength.

    Reference: Cubuk et al., RandAugment: Practical automated data augmentation with a reduced search space, 2019.
    """

    number: int = 2
    strength: int = 9

    def __post_init__(self) -> None:
        if not isinstance(self.number, int) or self.number < 1:
            raise ValueError(f"number={self.number}: it must be a whole number of operations")
        if self.strength not in range(BINS):
            raise ValueError(f"strength={self.strength}: it must be a whole number from 0 to {BINS - 1}")

    def __call__(self, images_BCHW: Tensor, chance: Generator) -> Tensor:
        """Return the images, each changed by operations of its own."""
        for _ in range(self.number):
            strengths = torch.full((len(images_BCHW),), self.strength)
            images_BCHW = operate(images_BCHW, strengths, RAND_LIMITS, chance)
        return images_BCHW

    def of_torchvision(self, size: Sequence[int], interpolation: str) -> OneImage:
        """Return what does it to one image, with that interpolation."""
        v2 = transforms()
        return v2.RandAugment(self.number, self.strength, interpolation=v2.InterpolationMode(interpolation))


@final
@dataclass(frozen=True)
class TrivialAugment:
    """Do one operation of any strength, up to a larger one, to each image.

    Reference: Müller and Hutter, TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation, 2021.
    """

    def __call__(self, images_BCHW: Tensor, chance: Generator) -> Tensor:
        """Return the images, each changed by an operation of its own."""
        strengths = torch.randint(BINS, (len(images_BCHW),), generator=chance)
        return operate(images_BCHW, strengths, TRIVIAL_LIMITS, chance)

    def of_torchvision(self, size: Sequence[int], interpolation: str) -> OneImage:
        """Return what does it to one image, with that interpolation."""
        v2 = transforms()
        return v2.TrivialAugmentWide(interpolation=v2.InterpolationMode(interpolation))


def operate(images_BCHW: Tensor, strengths: Tensor, limits: Limits, chance: Generator) -> Tensor:
    """Return images, each changed by an operation that it drew, with its strength and a sign that it drew."""
    drawn = torch.randint(len(OPERATIONS), (len(images_BCHW),), generator=chance)
    signs = 1 - 2 * torch.randint(2, (len(images_BCHW),), generator=chance)
    changed = images_BCHW.clone()
    for number, name in enumerate(OPERATIONS):
        rows = (drawn == number).nonzero().squeeze(1)
        if len(rows):
            levels = strengths[rows] / (BINS - 1)
            changed[rows] = OPERATIONS[name](images_BCHW[rows], levels, signs[rows], limits)
    return changed


# Below: images [B, C, H, W] in [0, 1], strength as a level in [0, 1], and the sign where there are two directions.


def shear_x(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Move rows, the more the lower they are."""
    slope, one, zero = sign * level * limits.shear, torch.ones_like(level), torch.zeros_like(level)
    return resampled(images, [[one, slope, slope * (images.shape[-2] / 2)], [zero, one, zero]])


def shear_y(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Move columns, the more the further right they are."""
    slope, one, zero = sign * level * limits.shear, torch.ones_like(level), torch.zeros_like(level)
    return resampled(images, [[one, zero, zero], [slope, one, slope * (images.shape[-1] / 2)]])


def move_x(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Move to a side, by whole pixels."""
    moved, one, zero = _pixels(images.shape[-1], sign * level, limits), torch.ones_like(level), torch.zeros_like(level)
    return resampled(images, [[one, zero, -moved], [zero, one, zero]])


def move_y(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Move up or down, by whole pixels."""
    moved, one, zero = _pixels(images.shape[-2], sign * level, limits), torch.ones_like(level), torch.zeros_like(level)
    return resampled(images, [[one, zero, zero], [zero, one, -moved]])


def rotate(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Turn about the middle."""
    return rotated(images, sign * level * limits.degrees)


def change_brightness(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Blend with black, or away from it."""
    return _blend(images, torch.zeros_like(images), sign * level * limits.blend)


def change_color(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Blend with the same image in grey; a grey one stays as it is."""
    return _blend(images, _grey(images), sign * level * limits.blend)


def change_contrast(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Blend with the average of all pixels in grey."""
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), sign * level * limits.blend)


def change_sharpness(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Blend with the same image blurred."""
    blurred = transforms().functional.adjust_sharpness(images, 0.0)
    return _blend(images, blurred, sign * level * limits.blend)


def posterize(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Drop the last bits of the eight in each pixel."""
    step = 2 ** (level * limits.bits).round()[:, None, None, None]
    return (images * MAX_PIXEL).round().div(step).floor().mul(step).div(MAX_PIXEL)


def solarize(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Invert what is bright."""
    return torch.where(images >= 1 - level[:, None, None, None], 1 - images, images)


def stretch_contrast(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Make the darkest pixel of each channel black and the brightest white."""
    return transforms().functional.autocontrast(images)


def equalize(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Make all brightnesses equally frequent."""
    return transforms().functional.equalize(images)


def keep(images: Tensor, level: Tensor, sign: Tensor, limits: Limits) -> Tensor:
    """Change nothing."""
    return images


OPERATIONS = {
    "Identity": keep,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": move_x,
    "TranslateY": move_y,
    "Rotate": rotate,
    "Brightness": change_brightness,
    "Color": change_color,
    "Contrast": change_contrast,
    "Sharpness": change_sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": stretch_contrast,
    "Equalize": equalize,
}


def _pixels(size: int, level: Tensor, limits: Limits) -> Tensor:
    return (level * limits.moves(size)).trunc()


def _grey(images: Tensor) -> Tensor:
    return transforms().functional.rgb_to_grayscale(images, 3) if images.shape[1] == 3 else images


def _blend(images: Tensor, other: Tensor, away: Tensor) -> Tensor:
    return torch.lerp(other, images, 1 + away[:, None, None, None]).clamp_(0, 1)
