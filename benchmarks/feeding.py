"""Measure how long a batch of images takes to get ready, beside the training step that it is for; print a table.

    python benchmarks/feeding.py                      a minute on two cores
    python benchmarks/feeding.py --seconds 3 --batch 256

The images have the size of CIFAR's, and random pixels. All ways take turns in one process.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cutwork.data.feed import Batch, Feeding
from cutwork.data.image_feed import ImageFeed
from cutwork.data.images import Images
from cutwork.data.vision import transforms
from cutwork.models.wide_resnet import make_wide_resnet
from cutwork.speed.timing import measure

STEP = "training step of WRN-16-2"
AUGMENTATIONS = (
    (),
    ("crop", "flip"),
    ("crop", "flip", "erasing"),
    ("crop", "flip", "mixup:0.2"),
    ("crop", "flip", "cutmix"),
    ("crop", "flip", "trivialaugment"),
    ("crop", "flip", "randaugment"),
)
NUM_BATCHES = 20


def make_step(batch: int) -> Callable[[], None]:
    """Return a training step of WRN-16-2."""
    model, images, labels = make_wide_resnet(16, 2), torch.rand(batch, 3, 32, 32), torch.randint(10, (batch,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def endless(feed: ImageFeed) -> Iterator[Batch]:
    """Yield batches of one epoch after the other."""
    epoch = 0
    while True:
        yield from feed.training(epoch)
        epoch += 1


def image_by_image(images: Tensor) -> Callable[[], Tensor]:
    """Return what makes a batch out of images that torchvision crops and flips one after the other."""
    v2 = transforms()
    change = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    return lambda: torch.stack([change(image) for image in images])


def ways_of(batch: int) -> dict[str, Callable[[], object]]:
    """Return all that is timed."""
    num_images = NUM_BATCHES * batch
    images, labels = torch.rand(num_images, 3, 32, 32), torch.randint(10, (num_images,))
    data = Images(images, labels, images[:batch], labels[:batch])
    ways: dict[str, Callable[[], object]] = {STEP: make_step(batch)}
    for augment in AUGMENTATIONS:
        batches = endless(ImageFeed("random", data, Feeding(batch=batch, augment=augment)))
        ways[" ".join(augment) or "nothing"] = batches.__next__
    return ways | {"crop flip, image by image": image_by_image(images[:batch])}


def main() -> None:
    """Print a row for each way to get a batch ready."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=40.0)
    given = parser.parse_args()
    torch.manual_seed(0)
    timings = measure(ways_of(given.batch), seconds=given.seconds)
    print("| what is done | ms | of a step |\n|---|--:|--:|")
    for name, timing in timings.items():
        print(f"| {name} | {1000 * timing.median_s:.1f} | {100 * timing.median_s / timings[STEP].median_s:.1f} % |")


if __name__ == "__main__":
    main()
