"""Augmentations that mix each image of a batch with the one before it."""

import math
from dataclasses import dataclass
from random import Random
from typing import final

import torch
from torch import Generator, Tensor


@final
@dataclass(frozen=True)
class Mixup:
    """Lay images over each other, with a weight from Beta(alpha, alpha), one for the whole batch.

    Reference: Zhang et al., mixup: Beyond Empirical Risk Minimization, 2018.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def __call__(self, images: Tensor, shares: Tensor, chance: Generator) -> tuple[Tensor, Tensor]:
        """Return mixed images, and what share of each class is in each of them."""
        weight = _draw_beta(self.alpha, chance)
        return _blend(images, weight), _blend(shares, weight)


@final
@dataclass(frozen=True)
class Cutmix:
    """Replace a rectangle, the same in the whole batch; its share of the area comes from Beta(alpha, alpha).

    Reference: Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features, 2019.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def __call__(self, images: Tensor, shares: Tensor, chance: Generator) -> tuple[Tensor, Tensor]:
        """Return mixed images, and what share of each class is in each of them."""
        height, width = images.shape[-2:]
        side = math.sqrt(1 - _draw_beta(self.alpha, chance))
        rows, columns = (_draw_span(size, side, chance) for size in (height, width))
        mixed = images.clone()
        mixed[..., rows, columns] = images.roll(1, 0)[..., rows, columns]
        # An edge may have cut the rectangle.
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        return mixed, _blend(shares, 1 - area / (height * width))


def _draw_beta(alpha: float, chance: Generator) -> float:
    # PyTorch's distributions take no generator.
    return Random(int(torch.randint(2**62, (), generator=chance))).betavariate(alpha, alpha)


def _draw_span(size: int, share: float, chance: Generator) -> slice:
    middle, half = int(torch.randint(size, (), generator=chance)), int(0.5 * share * size)
    return slice(max(0, middle - half), min(size, middle + half))


def _blend(values: Tensor, weight: float) -> Tensor:
    return values.roll(1, 0).mul_(1 - weight).add_(values, alpha=weight)


def _check_alpha(alpha: float) -> None:
    if alpha <= 0:
        raise ValueError(f"alpha={alpha}: it must be above 0")
