"""Batches of images that lie in files, read and augmented by other processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cutwork.data.augment import Augmentations
from cutwork.data.cache import VARIABLE, cache_folder
from cutwork.data.feed import Batch, Feed, Feeding, chance_of, judging_order, order_of, refuse, steps_in
from cutwork.data.framing import OneImage, ResizedCrop
from cutwork.data.image_folder import ImageFiles, list_images
from cutwork.data.vision import seeded, transforms
from cutwork.text import counted

# Statistics of ImageNet, which are used for all photographs.
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
MAX_PIXEL = 255

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


def make_imagenet(feeding: Feeding, folder: str | Path | None = None) -> "FolderFeed":
    """Return batches of ImageNet: 224 pixels, in testing out of 256, from `train/` and `val/` by classes."""
    return _make("imagenet", "https://image-net.org", feeding, folder, Sizes(224, 224, 256))


def make_tiny_imagenet(feeding: Feeding, folder: str | Path | None = None) -> "FolderFeed":
    """Return batches of Tiny-ImageNet, 64 pixels, from the folder that its archive holds."""
    url = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    return _make("tiny-imagenet", url, feeding, folder, Sizes(64, 64, 64))


def make_folder(path: str, feeding: Feeding) -> "FolderFeed":
    """Return batches of the images in `train/` and `val/` of a folder, which have a folder for each class."""
    return FolderFeed(Path(path).expanduser(), feeding, Sizes(224, 224, 256))


def _make(name: str, url: str, feeding: Feeding, folder: str | Path | None, sizes: "Sizes") -> "FolderFeed":
    place = cache_folder() / name if folder is None else Path(folder)
    if not place.is_dir():
        raise FileNotFoundError(
            f"{name} needs the folder {place}, which is not there; get it from {url} and unpack it there, or name "
            f"another folder; the environment variable {VARIABLE} says in which all data sets lie"
        )
    return FolderFeed(place, feeding, sizes)


@final
@dataclass(frozen=True)
class Sizes:
    """In pixels: the sides of a training and of a test image, and the shorter side of what that is cut out of."""

    train: int
    test: int
    resized: int


@final
class FolderFeed(Feed):
    """A data set whose images are read when they are needed.

    Without `resized-crop` among the augmentations, training images are cut out of the middle, as test images are.
    """

    def __init__(self, folder: Path, feeding: Feeding, sizes: Sizes) -> None:
        refuse(feeding, ("context",), "images")
        if feeding.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation={feeding.interpolation!r}: write one of {', '.join(INTERPOLATIONS)}")
        self.data, self.feeding = list_images(folder), feeding
        self.augmentations = Augmentations.parse(feeding.augment)
        self.sizes = Sizes(
            feeding.train_crop or sizes.train, feeding.test_crop or sizes.test, feeding.test_resize or sizes.resized
        )
        self.num_classes = len(self.data.classes)
        self.steps_of_epoch = steps_in(len(self.data.train), feeding)
        self.description = (
            f"{folder}: {len(self.data.train)} training and {len(self.data.test)} test images of {self.num_classes} "
            f"classes, {self.sizes.train} and {self.sizes.test} pixels, read by {counted(feeding.workers, 'worker')}"
        )
        self.example = self._test_images()[0][0][None]

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, beginning with one of its steps, as if those before it had been yielded."""
        images = ForTraining(self.data.train, self._middle(self.sizes.train), self.augmentations, self.feeding, epoch)
        for step, (pixels, labels) in enumerate(self._load(images, islice(self._places(epoch), start, None)), start):
            chance = chance_of(self.feeding.seed, epoch, step, self.feeding.rank)
            yield self.augmentations.mix(pixels, labels, self.num_classes, chance)

    def testing(self) -> Iterator[Batch]:
        """Yield all test examples once, shared out between the processes."""
        order = judging_order(len(self.data.test), self.feeding)
        yield from self._load(self._test_images(), (numbers.tolist() for numbers in order))

    def _places(self, epoch: int) -> Iterator[list[tuple[int, int]]]:
        """Yield for each batch which images it holds, each with its place among all of the epoch."""
        batch, world = self.feeding.batch, self.feeding.world
        for step, chosen in enumerate(order_of(epoch, len(self.data.train), self.feeding)):
            first = step * batch * world + self.feeding.rank
            yield [*zip(range(first, first + batch * world, world), chosen.tolist(), strict=True)]

    def _load(self, images: Dataset, batches: Iterator[Any]) -> Iterator[Batch]:
        yield from DataLoader(
            images,
            batch_sampler=batches,  # type: ignore[arg-type]
            num_workers=self.feeding.workers,
            pin_memory=torch.accelerator.is_available(),
            # Its own, unused: otherwise each loader would draw a number from the chance of the program.
            generator=torch.Generator(),
        )

    def _test_images(self) -> "ForTesting":
        return ForTesting(self.data.test, self._middle(self.sizes.test))

    def _middle(self, size: int) -> "Middle":
        return Middle(size, self.sizes.resized, self.feeding.interpolation)


@final
@dataclass(frozen=True)
class Middle:
    """How the middle of an image is cut out, after its shorter side was made `resized` pixels long."""

    size: int
    resized: int
    interpolation: str

    def __post_init__(self) -> None:
        if self.size > self.resized:
            raise ValueError(
                f"{self.size} pixels cannot be cut out of {self.resized}; make test_resize at least as large"
            )

    def cut(self, image: Any) -> Any:
        """Return the middle of one of Pillow's images."""
        v2 = transforms()
        resized = v2.functional.resize(image, [self.resized], v2.InterpolationMode(self.interpolation))
        return v2.functional.center_crop(resized, [self.size, self.size])


@final
class ForTraining(Dataset):
    """Training images of one epoch; what is done to each follows from its place in it, whoever reads it and when."""

    def __init__(
        self, files: ImageFiles, middle: Middle, augmentations: Augmentations, feeding: Feeding, epoch: int
    ) -> None:
        self.files, self.middle, self.augmentations = files, middle, augmentations
        self.seed, self.epoch = feeding.seed, epoch

    def __getitem__(self, place_and_number: tuple[int, int]) -> Batch:
        place, number = place_and_number
        image = self.files.open(number)
        with seeded(chance_of(self.seed, self.epoch, place)):
            for change in self.changes:
                image = change(image)
        return image, self.files.labels[number]

    @cached_property
    def changes(self) -> list[OneImage]:
        """What is done to an image; made by who reads it, since torchvision must have been imported there."""
        before, after = (
            [one.of_torchvision([self.middle.size] * 2, self.middle.interpolation) for one in stage]
            for stage in (self.augmentations.before, self.augmentations.after)
        )
        whole = any(isinstance(one, ResizedCrop) for one in self.augmentations.before)
        return [*([] if whole else [self.middle.cut]), *before, _pixels, _standardise, *after]


@final
class ForTesting(Dataset):
    """Test images, cut out of the middle."""

    def __init__(self, files: ImageFiles, middle: Middle) -> None:
        self.files, self.middle = files, middle

    def __getitem__(self, number: int) -> Batch:
        return _standardise(_pixels(self.middle.cut(self.files.open(number)))), self.files.labels[number]


def _pixels(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32).div_(MAX_PIXEL)


def _standardise(image_CHW: Tensor) -> Tensor:
    return (image_CHW - MEAN) / DEVIATION
