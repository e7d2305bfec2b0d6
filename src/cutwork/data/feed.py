"""What a training run is fed: batches that follow from seed, epoch and step alone, whoever asks and whenever."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
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
        augment: What is done to training images, by names.
        rank: Which of several processes this one is.
        world: How many processes there are; each gets batches of its own.
        workers: Processes that read files beside this one.
    """

    batch: int = 128
    test_batch: int = 500
    seed: int = 0
    augment: tuple[str, ...] = ()
    rank: int = 0
    world: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("batch", "test_batch", "world"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: it must be at least 1")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank={self.rank}: it must be below the number of processes, {self.world}")


class Feed(ABC):
    """Batches to train with and to be judged by. What is given to other processes is never given to this one."""

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


def steps_in(examples: int, feeding: Feeding) -> int:
    """Return how many whole batches of all processes together there are."""
    steps = examples // (feeding.batch * feeding.world)
    if not steps:
        processes = f" for {feeding.world} processes" if feeding.world > 1 else ""
        raise ValueError(f"there are {examples} training examples, fewer than a batch of {feeding.batch}{processes}")
    return steps


def order_of(epoch: int, examples: int, feeding: Feeding) -> Iterator[Tensor]:
    """Yield the numbers of the examples in each batch of this process in an epoch.

    >>> [len(chosen) for chosen in order_of(0, 10, Feeding(batch=4))]
    [4, 4]
    """
    size = feeding.batch * feeding.world
    order = torch.randperm(examples, generator=chance_of(feeding.seed, epoch))
    for whole in order[: steps_in(examples, feeding) * size].split(size):
        yield whole[feeding.rank * feeding.batch :][: feeding.batch]


def judging_order(examples: int, feeding: Feeding) -> Iterator[Tensor]:
    """Yield the numbers of the test examples of this process, batch by batch; processes may have one more or fewer."""
    yield from torch.arange(feeding.rank, examples, feeding.world).split(feeding.test_batch)
