"""What a training run is fed: batches that follow from seed, epoch and step alone, whoever asks and whenever."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

# An input and what should come out: numbers of classes, or a share of each class where images were mixed.
Batch = tuple[Tensor, Tensor]


@final
@dataclass(frozen=True)
class Feeding:
    """How a data set is cut into batches.

    Args:
        batch: Examples in a batch of each process.
        test_batch: Examples at once where a model is judged.
        seed: Fixes order and augmentation.
        augment: What is done to training images, by names, as `docs/data.md` lists them.
        repeats: How often an example comes in an epoch, each time augmented anew; of the others the fewer come.
        rank: Which of several processes this one is.
        world: How many processes there are; each gets batches of its own.
        workers: Processes that read files beside this one.
        train_crop: Pixels of a side of training images in files, where the data set's own number is not wanted.
        test_crop: The same of test images.
        test_resize: Pixels of the shorter side of test images before they are cut.
        interpolation: How images in files are resized: bilinear, bicubic, nearest.
        context: Bytes of text in an example; 128.
    """

    batch: int = 128
    test_batch: int = 500
    seed: int = 0
    augment: tuple[str, ...] = ()
    repeats: int = 1
    rank: int = 0
    world: int = 1
    workers: int = 0
    train_crop: int | None = None
    test_crop: int | None = None
    test_resize: int | None = None
    interpolation: str = "bilinear"
    context: int | None = None

    def __post_init__(self) -> None:
        for name in ("batch", "test_batch", "repeats", "world", "train_crop", "test_crop", "test_resize", "context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: it must be at least 1")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank={self.rank}: it must be below the number of processes, {self.world}")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: it must be at least 0")


class Feed(ABC):
    """Batches to train with and to be judged by. What is given to other processes is never given to this one."""

    # What it is, in a line for logs.
    description: str
    # How many classes there are.
    num_classes: int
    # A batch of one input, to build and look at models with.
    example: Tensor
    # Batches of each epoch.
    steps_of_epoch: int

    @abstractmethod
    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, beginning with one of its steps, as if those before it had been yielded."""

    @abstractmethod
    def testing(self) -> Iterator[Batch]:
        """Yield all test examples once, shared out between the processes."""


def chance_of(*numbers: int) -> torch.Generator:
    """Return a source of chance that follows from these numbers: seed, epoch and step.

    >>> torch.rand(1, generator=chance_of(0, 3, 1)) == torch.rand(1, generator=chance_of(0, 3, 1))
    tensor([True])
    """
    mixed = 0
    for number in numbers:
        # The multiplier of a 64-bit linear congruence of full period: near numbers come to lie far apart.
        mixed = ((mixed ^ number) * 6364136223846793005 + 1442695040888963407) % 2**63
    # Of a seed, PyTorch's generator for CPUs reads 32 bits, and the upper ones are mixed best.
    return torch.Generator().manual_seed(mixed >> 31)


def refuse(feeding: Feeding, names: Sequence[str], what: str) -> None:
    """Raise an error if something was asked for, by these names, of which data of this kind knows nothing."""
    for name in names:
        if (value := getattr(feeding, name)) != getattr(Feeding, name):
            raise ValueError(f"{name}={value!r}: {what} can do nothing with it; leave it out")


def steps_in(examples: int, feeding: Feeding) -> int:
    """Return how many whole batches of all processes together there are."""
    steps = examples // (feeding.batch * feeding.world)
    if not steps:
        processes = f" for {feeding.world} processes" if feeding.world > 1 else ""
        raise ValueError(f"there are {examples} training examples, fewer than a batch of {feeding.batch}{processes}")
    return steps


def order_of(epoch: int, examples: int, feeding: Feeding) -> Iterator[Tensor]:
    """Yield the numbers of the examples in each batch of this process in an epoch.

    Processes take turns, so that what is repeated comes in different ones. An epoch is as long with repeats as without.

    >>> [len(chosen) for chosen in order_of(0, 10, Feeding(batch=4))]
    [4, 4]

    Reference for repeats: Hoffer et al., Augment your batch: better training with larger batches, 2019.
    """
    size = feeding.batch * feeding.world
    order = torch.randperm(examples, generator=chance_of(feeding.seed, epoch)).repeat_interleave(feeding.repeats)
    for whole in order[: steps_in(examples, feeding) * size].split(size):
        yield whole[feeding.rank :: feeding.world]


def judging_order(examples: int, feeding: Feeding) -> Iterator[Tensor]:
    """Yield the numbers of the test examples of this process, batch by batch; processes may have one more or fewer."""
    yield from torch.arange(feeding.rank, examples, feeding.world).split(feeding.test_batch)
