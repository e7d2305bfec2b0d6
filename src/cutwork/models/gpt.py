"""A small language model that reads text byte by byte."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@final
class Attention(nn.Module):
    """Attention of each place to itself and those before it, or to all."""

    def __init__(self, width: int, num_heads: int, *, is_causal: bool) -> None:
        super().__init__()
        self.num_heads, self.is_causal = num_heads, is_causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each place learns from those that it sees."""
        queries, keys, values = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3).unbind(2)
        y = F.scaled_dot_product_attention(queries, keys, values, is_causal=self.is_causal)
        return self.proj(y.transpose(1, 2).flatten(2))


@final
class GPTBlock(nn.Module):
    """Attention, then two linear layers, each behind a norm and added to what came in."""

    def __init__(self, width: int, num_heads: int, *, dropout: float, is_causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, num_heads, is_causal=is_causal)
        self.mlp = nn.Sequential()
        for name, part in (
            ("fc1", nn.Linear(width, 4 * width)),
            ("act", nn.GELU()),
            ("fc2", nn.Linear(4 * width, width)),
        ):
            self.mlp.add_module(name, part)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the block makes of each place."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


@final
class GPT(nn.Module):
    """Scores of the byte that comes next, at each place of a text."""

    def __init__(
        self, *, width: int, num_heads: int, num_blocks: int, context: int, vocabulary: int, dropout: float
    ) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(
            *(GPTBlock(width, num_heads, dropout=dropout, is_causal=True) for _ in range(num_blocks))
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores `[batch, place, vocabulary]` of what follows each place."""
        if tokens.shape[1] > self.context:
            raise ValueError(f"the model reads at most {self.context} tokens at once; got {tokens.shape[1]}")
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(places))))


def make_gpt(
    width: int = 128,
    *,
    num_heads: int = 4,
    num_blocks: int = 4,
    context: int = 128,
    vocabulary: int = 256,
    dropout: float = 0.0,
) -> GPT:
    """Return a small language model with random weights.

    >>> make_gpt(32, num_blocks=1)(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 256])
    """
    if width % num_heads:
        raise ValueError(f"a width of {width} cannot be shared by {num_heads} heads; choose a multiple of {num_heads}")
    model = GPT(
        width=width,
        num_heads=num_heads,
        num_blocks=num_blocks,
        context=context,
        vocabulary=vocabulary,
        dropout=dropout,
    )
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            # What is added to the residual stream is smaller the more is added.
            share = (2 * num_blocks) ** -0.5 if name.endswith((".proj", ".fc2")) else 1.0
            nn.init.normal_(module.weight, std=0.02 * share)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
    return model
