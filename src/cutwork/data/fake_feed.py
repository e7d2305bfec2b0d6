"""Batches of random images, for timing."""

import re
from collections.abc import Iterator
from typing import final

import torch

from cutwork.data.augment import Augmentations
from cutwork.data.feed import Batch, Feed, Feeding, chance_of, refuse

NUM_CLASSES = 1000
STEPS = 100


def make_fake(text: str, feeding: Feeding) -> "FakeFeed":
    """Return batches of random images of a shape such as `3x224x224`, behind it a number of classes if not 1000.

    >>> make_fake("3x32x32:10", Feeding(batch=4)).description
    '100 times the same 4 random images, 3x32x32, of 10 classes'
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)(?::([1-9]\d*))?", text)
    if not match:
        raise ValueError(f"fake:{text}: write channels x height x width, and classes if not 1000: fake:3x32x32:10")
    *shape, num_classes = match.groups()
    return FakeFeed(tuple(map(int, shape)), int(num_classes or NUM_CLASSES), feeding)


@final
class FakeFeed(Feed):
    """One batch of random images, made once and given again and again. Augmentations are done to it as to real ones."""

    def __init__(self, shape: tuple[int, ...], num_classes: int, feeding: Feeding) -> None:
        refuse(
            feeding, ("repeats", "train_crop", "test_crop", "test_resize", "interpolation", "context"), "fake images"
        )
        self.feeding, self.num_classes, self.steps_of_epoch = feeding, num_classes, STEPS
        self.augmentations = Augmentations.parse(feeding.augment)
        chance = chance_of(feeding.seed, feeding.rank)
        self.images = torch.rand(feeding.batch, *shape, generator=chance)
        self.labels = torch.randint(num_classes, (feeding.batch,), generator=chance)
        self.example = self.images[:1]
        size = "x".join(map(str, shape))
        self.description = f"{STEPS} times the same {feeding.batch} random images, {size}, of {num_classes} classes"

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, beginning with one of its steps, as if those before it had been yielded."""
        for step in range(start, STEPS):
            chance = chance_of(self.feeding.seed, epoch, step, self.feeding.rank)
            images = self.augmentations.change(self.images, lambda images: images, chance)
            yield self.augmentations.mix(images, self.labels, self.num_classes, chance)

    def testing(self) -> Iterator[Batch]:
        """Yield the batch once."""
        yield self.images, self.labels
