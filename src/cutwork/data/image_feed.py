"""Batches of images that lie in memory, augmented a batch at a time."""

from collections.abc import Iterator
from itertools import islice
from typing import final

from torch import Tensor

from cutwork.data.augment import Augmentations
from cutwork.data.feed import Batch, Feed, Feeding, chance_of, judging_order, order_of, refuse, steps_in
from cutwork.data.images import Images


@final
class ImageFeed(Feed):
    """A data set that is small enough to be kept whole.

    >>> from cutwork.data import load_data
    >>> feed = ImageFeed("digits", load_data("digits"), Feeding(batch=64))
    >>> feed.steps_of_epoch, next(feed.training(epoch=0))[0].shape
    (22, torch.Size([64, 1, 8, 8]))
    """

    def __init__(self, name: str, data: Images, feeding: Feeding) -> None:
        refuse(
            feeding, ("train_crop", "test_crop", "test_resize", "interpolation", "context"), f"the data set {name!r}"
        )
        self.data, self.feeding = data, feeding
        self.augmentations = Augmentations.parse(feeding.augment)
        self.num_classes = 1 + int(data.train_labels.max())
        self.steps_of_epoch = steps_in(len(data.train_images), feeding)
        # Statistics of the training images, by which all are made of mean 0 and deviation 1 in each channel.
        axes = (0, 2, 3)
        self.mean = data.train_images.mean(axes)[:, None, None]
        self.deviation = data.train_images.std(axes)[:, None, None]
        self.description = (
            f"{name}: {len(data.train_images)} training and {len(data.test_images)} test images in memory, "
            f"{'x'.join(map(str, data.train_images.shape[1:]))}, of {self.num_classes} classes"
        )
        self.example = self._standardise(data.test_images[:1])

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, beginning with one of its steps, as if those before it had been yielded."""
        order = order_of(epoch, len(self.data.train_images), self.feeding)
        for step, chosen in islice(enumerate(order), start, None):
            chance = chance_of(self.feeding.seed, epoch, step, self.feeding.rank)
            images = self.augmentations.change(self.data.train_images[chosen], self._standardise, chance)
            yield self.augmentations.mix(images, self.data.train_labels[chosen], self.num_classes, chance)

    def testing(self) -> Iterator[Batch]:
        """Yield all test examples once, shared out between the processes."""
        for chosen in judging_order(len(self.data.test_images), self.feeding):
            yield self._standardise(self.data.test_images[chosen]), self.data.test_labels[chosen]

    def _standardise(self, images_BCHW: Tensor) -> Tensor:
        return (images_BCHW - self.mean) / self.deviation
