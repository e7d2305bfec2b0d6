"""What of torchvision the data sets use, imported when it is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

import torch
from torch import Generator

from cutwork.models.torchvision import import_torchvision


def transforms() -> ModuleType:
    """Return `torchvision.transforms.v2`."""
    try:
        import_torchvision()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"these images need {error.name}; install it with pip install 'cutwork[vision]'"
        ) from error
    return import_module("torchvision.transforms.v2")


@contextmanager
def seeded(chance: Generator) -> Iterator[None]:
    """Let code that knows only PyTorch's own chance follow from another; afterwards that is as it was."""
    seed = int(torch.randint(2**32, (), generator=chance))
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the accelerators.
        torch.default_generator.manual_seed(seed)
        yield
