"""Augmentations of images that choose what of an image is seen, and where."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cutwork.data.vision import seeded, transforms

# Of one of Pillow's images, or of a tensor [C, H, W]; its chance is PyTorch's own.
OneImage = Callable[[Any], Any]

# One in so many pixels is added on each side: 4 to 32, 4 to 28, 8 to 64.
PADDED_SHARE = 8


@final
@dataclass(frozen=True)
class Crop:
    """Move images by up to `padding` pixels in each direction, over black; an eighth of the side unless it is said."""

    padding: int | None = None

    def __post_init__(self) -> None:
        if self.padding is not None and (not isinstance(self.padding, int) or self.padding < 1):
            raise ValueError(f"padding={self.padding}: it must be a whole number of pixels")

    def __call__(self, images_BCHW: Tensor, chance: Generator) -> Tensor:
        """Return the images, each moved by an amount of its own."""
        height, width = images_BCHW.shape[-2:]
        padding = self._padding((height, width))
        rows, columns = torch.randint(2 * padding + 1, (2, len(images_BCHW)), generator=chance)
        # All that could be cropped, without copying: [B, C, first row, first column, H, W].
        crops = F.pad(images_BCHW, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        return crops[torch.arange(len(images_BCHW)), :, rows, columns]

    def of_torchvision(self, size: Sequence[int], interpolation: str) -> OneImage:
        """Return what does it to one image."""
        return transforms().RandomCrop(size, padding=self._padding(size))

    def _padding(self, size: Sequence[int]) -> int:
        return self.padding or max(1, round(min(size) / PADDED_SHARE))


@final
@dataclass(frozen=True)
class Flip:
    """Turn left and right about, in every second image."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.probability)

    def __call__(self, images_BCHW: Tensor, chance: Generator) -> Tensor:
        """Return the images, some of them mirrored."""
        chosen = torch.rand(len(images_BCHW), generator=chance) < self.probability
        return torch.where(chosen[:, None, None, None], images_BCHW.flip(-1), images_BCHW)

    def of_torchvision(self, size: Sequence[int], interpolation: str) -> OneImage:
        """Return what does it to one image."""
        return transforms().RandomHorizontalFlip(self.probability)


@final
@dataclass(frozen=True)
class Rotate:
    """Turn images by up to so many degrees to either side; what comes into view is black."""

    degrees: float = 20

    def __post_init__(self) -> None:
        if not 0 < self.degrees <= 180:
            raise ValueError(f"degrees={self.degrees}: it must be above 0 and at most 180")

    def __call__(self, images_BCHW: Tensor, chance: Generator) -> Tensor:
        """Return the images, each turned by an angle of its own."""
        return rotated(images_BCHW, self.degrees * (2 * torch.rand(len(images_BCHW), generator=chance) - 1))

    def of_torchvision(self, size: Sequence[int], interpolation: str) -> OneImage:
        """Return what does it to one image."""
        v2 = transforms()
        return v2.RandomRotation(self.degrees, interpolation=v2.InterpolationMode(interpolation))


@final
@dataclass(frozen=True)
class ResizedCrop:
    """Cut out a part of random size and shape, at least the share `least` of the area, and make it the whole image."""

    least: float = 0.08

    def __post_init__(self) -> None:
        if not 0 < self.least <= 1:
            raise ValueError(f"least={self.least}: it must be above 0 and at most 1")

    def __call__(self, images_BCHW: Tensor, chance: Generator) -> Tensor:
        """Return as large images, each with a part of one."""
        # One by one: each part has a size of its own.
        change = self.of_torchvision(images_BCHW.shape[-2:], "bilinear")
        with seeded(chance):
            return torch.stack([change(image) for image in images_BCHW])

    def of_torchvision(self, size: Sequence[int], interpolation: str) -> OneImage:
        """Return what does it to one image."""
        v2 = transforms()
        return v2.RandomResizedCrop(size, (self.least, 1.0), interpolation=v2.InterpolationMode(interpolation))


@final
@dataclass(frozen=True)
class Erasing:
    """Make a rectangle of some images zero, of up to a third of the area; done to images of mean zero."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self.probability)

    def __call__(self, images_BCHW: Tensor, chance: Generator) -> Tensor:
        """Return the images, some of them with a hole."""
        num_images, _, height, width = images_BCHW.shape
        # Ten tries to find a rectangle that fits, of which the first counts.
        area, ratio = torch.rand(2, num_images, 10, generator=chance)
        area = (0.02 + 0.31 * area) * height * width
        ratio = torch.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * ratio)
        heights, widths = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
        fits, first = ((heights < height) & (widths < width)).max(dim=1)
        high, wide = (sizes.gather(1, first[:, None]).squeeze(1) for sizes in (heights, widths))
        chosen, top, left = torch.rand(3, num_images, generator=chance)
        top, left = (top * (height - high + 1)).floor(), (left * (width - wide + 1)).floor()
        rows, columns = torch.arange(height), torch.arange(width)
        in_rows = (rows >= top[:, None]) & (rows < (top + high)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
        erased = in_rows[:, :, None] & in_columns[:, None, :] & (fits & (chosen < self.probability))[:, None, None]
        return images_BCHW.masked_fill(erased[:, None], 0.0)

    def of_torchvision(self, size: Sequence[int], interpolation: str) -> OneImage:
        """Return what does it to one image."""
        return transforms().RandomErasing(self.probability)


def rotated(images_BCHW: Tensor, degrees: Tensor) -> Tensor:
    """Return images turned about their middle, counterclockwise, each by an angle of its own."""
    radians = degrees.deg2rad()
    zero = torch.zeros_like(radians)
    return resampled(images_BCHW, [[radians.cos(), -radians.sin(), zero], [radians.sin(), radians.cos(), zero]])


def resampled(images_BCHW: Tensor, matrix: list[list[Tensor]]) -> Tensor:
    """Return images whose pixel (x, y) is the nearest one to matrix @ (x, y, 1), counted from the middle; else black.

    Each of the six entries is a vector with a number for each image.
    """
    height, width = images_BCHW.shape[-2:]
    (xx, xy, x), (yx, yy, y) = matrix
    # The grid counts from -1 to 1 in both directions.
    rows = [xx, xy * (height / width), x * (2 / width), yx * (width / height), yy, y * (2 / height)]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), [*images_BCHW.shape], align_corners=False)
    return F.grid_sample(images_BCHW, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def _check_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability={probability}: it must be from 0 to 1")
