"""A small vision transformer for images of any size, such as those of 28x28 and 32x32 pixels."""

from typing import final

import torch
from torch import Tensor, nn

from cutwork.models.gpt import GPTBlock

HEAD_WIDTH = 64


@final
class ViT(nn.Module):
    """Pieces of an image as tokens, blocks of a transformer that see all of them, and a class from their mean."""

    def __init__(
        self, *, size: int, patch: int, channels: int, width: int, num_heads: int, num_blocks: int, num_classes: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.positions = nn.Parameter(torch.randn((size // patch) ** 2, width) * 0.02)
        blocks = (GPTBlock(width, num_heads, dropout=0.0, is_causal=False) for _ in range(num_blocks))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return a score of each class."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def make_vit(
    size: int = 32,
    *,
    patch: int = 4,
    channels: int = 3,
    width: int = 192,
    num_heads: int | None = None,
    num_blocks: int = 6,
    num_classes: int = 10,
) -> ViT:
    """Return a small vision transformer with random weights, for square images of a size; each head is 64 wide.

    >>> make_vit(28, channels=1, width=64, num_blocks=1)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])

    Reference: Dosovitskiy et al., An image is worth 16x16 words, 2021.
    """
    if patch < 1 or size % patch:
        raise ValueError(f"images of {size} pixels cannot be cut into patches of {patch}; give a size that divides it")
    heads = max(1, width // HEAD_WIDTH) if num_heads is None else num_heads
    if width % heads:
        raise ValueError(f"a width of {width} cannot be shared by {heads} heads; choose a multiple of {heads}")
    return ViT(
        size=size,
        patch=patch,
        channels=channels,
        width=width,
        num_heads=heads,
        num_blocks=num_blocks,
        num_classes=num_classes,
    )
