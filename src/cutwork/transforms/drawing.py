"""First weights by chance, drawn from the numbers that a layer has."""

import math

import torch
from torch import Tensor

from cutwork.methods import generator_for

LARGEST_SAMPLE = 65_536


def draw(old: Tensor, shape: tuple[int, ...], *, seed: int, name: str, with_signs: bool = False) -> Tensor:
    """Return a tensor of entries of an old one, so that the model's own way of initialising carries over.

    It has chance of its own, by its name. `with_signs` gives each entry a sign by chance too: then products of two such
    tensors add up as those of independent numbers around zero do, whatever the old ones are.

    >>> draw(torch.tensor([0.5]), (3,), seed=0, name="bias")
    tensor([0.5000, 0.5000, 0.5000])
    """
    # A sample that fits a cache: entries all over a large weight take five times as long to fetch.
    number = min(old.numel(), LARGEST_SAMPLE)
    sample = old.flatten()[torch.arange(number, device=old.device) * old.numel() // number]
    if with_signs:
        sample = torch.cat((sample, -sample))
    chance = generator_for(seed, 0, name)
    places = torch.randint(len(sample), (math.prod(shape),), generator=chance, dtype=torch.int32).to(old.device)
    return sample.index_select(0, places).view(shape)
