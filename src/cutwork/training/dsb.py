"""Which layers the published program of dynamic shuffled blocks makes sparse, and how much of each it keeps."""

import math

from torch import nn

from cutwork.patterns import Shuffled
from cutwork.sparsity.layout import Layout
from cutwork.training.allocation import erk


def dsb_layers(model: nn.Module, *, density: float, block: int = 16) -> tuple[dict[str, str], dict[str, float]]:
    """Return the patterns and densities that the authors of shuffled blocks train a model with, for `sparsify`.

    All convolutions and linear layers share out the density by `erk`. Convolutions whose outputs divide into blocks and
    have as many input channels as a block has columns get shuffled blocks, their number rounded up; the others,
    and all linear layers, are unstructured. The authors move masks in the first half of the steps over which the
    fraction falls:

    >>> from cutwork import RigL, sparsify
    >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(64, 10))
    >>> patterns, densities = dsb_layers(model, density=0.1)
    >>> patterns
    {'0': 'unstructured', '1': 'shuffled:16', '3': 'unstructured'}
    >>> sparsifier = sparsify(
    ...     model, patterns, density=densities, method=RigL(every=100, until=37_501, anneal_until=75_000)
    ... )

    Reference: Jiang et al., Exposing and exploiting fine-grained block structures for fast and accurate sparse
    training, 2022.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    densities = erk({name: tuple(layer.weight.shape) for name, layer in layers.items()}, density)
    patterns = dict.fromkeys(layers, "unstructured")
    blocks = Shuffled(block, block)
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d) and layer.out_channels % block == 0 and layer.in_channels >= block:
            wanted = math.ceil(densities[name] * layer.weight.numel() / block**2)
            num_blocks = blocks.num_units(Layout.of(layer.weight).matrix_shape)
            patterns[name], densities[name] = str(blocks), min(1.0, wanted / num_blocks)
    return patterns, densities
