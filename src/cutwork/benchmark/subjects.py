"""The models that are measured, by name, each with a way to make inputs; all with random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.benchmark.choices import shape_of
from cutwork.compat.vision import import_torchvision

# What a small language model has seen before the token that is measured.
PAST_TOKENS = 128


@final
@dataclass(frozen=True)
class Subject:
    """A model, and the tensors of a batch of some size."""

    model: nn.Module
    inputs: Callable[[int], tuple[Tensor, ...]]


@final
class MlpBlock(nn.Module):
    """The block of a transformer without attention: norm, linear, GELU, linear, and around them a residual."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the block makes of tokens."""
        return x + self.fc2(self.gelu(self.fc1(self.norm(x))))


@final
class OneToken(nn.Module):
    """A language model that has read some tokens and predicts one more, again and again."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the predictions after one more token; what it adds to the cache is forgotten again."""
        return self.model(tokens, past_key_values=self._cache(len(tokens)), use_cache=True).logits

    def _cache(self, batch: int) -> Any:
        from transformers import DynamicCache

        config = self.model.config
        shape = (batch, config.num_key_value_heads, PAST_TOKENS, config.hidden_size // config.num_attention_heads)
        past = torch.ones(shape, dtype=self.model.dtype)
        cache = DynamicCache()
        for layer in range(config.num_hidden_layers):
            # The cache joins new keys to these and leaves them as they are, so all layers may share them.
            cache.update(past, past, layer)
        return cache


def subject(name: str) -> Subject:
    """Return the model of a name.

    >>> subject("mlp:16x64").inputs(3)[0].shape
    torch.Size([3, 16])
    """
    kind, _, rest = name.partition(":")
    if name in NAMED:
        return NAMED[name]()
    if kind not in KINDS or not rest:
        raise ValueError(
            f"unknown model {name!r}; write {', '.join(NAMED)}, linear:768x3072, mlp:768x3072, timm:NAME or "
            "torchvision:NAME"
        )
    return KINDS[kind](rest)


def _linear(text: str) -> Subject:
    inputs, outputs = shape_of(text)
    return Subject(nn.Sequential(nn.Linear(inputs, outputs)), lambda batch: (torch.randn(batch, inputs),))


def _mlp(text: str) -> Subject:
    width, hidden = shape_of(text)
    return Subject(MlpBlock(width, hidden), lambda batch: (torch.randn(batch, width),))


def _tiny() -> Subject:
    model = nn.Sequential(MlpBlock(64, 256), MlpBlock(64, 256), nn.Linear(64, 64))
    return Subject(model, lambda batch: (torch.randn(batch, 64),))


def _timm(name: str) -> Subject:
    import_torchvision()
    import timm

    return _of_images(timm.create_model(name))


def _torchvision(name: str) -> Subject:
    return _of_images(import_torchvision().models.get_model(name))


def _of_images(model: nn.Module) -> Subject:
    return Subject(
        model.to(memory_format=torch.channels_last),  # pyrefly: ignore
        lambda batch: (torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last),),
    )


def _llama() -> Subject:
    if find_spec("torchvision"):
        # transformers imports it too.
        import_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    model = OneToken(LlamaForCausalLM(config))
    return Subject(model, lambda batch: (torch.randint(config.vocab_size, (batch, 1)),))


NAMED: dict[str, Callable[[], Subject]] = {
    "tiny": _tiny,
    "vit-b16": lambda: _timm("vit_base_patch16_224"),
    "resnet50": lambda: _timm("resnet50"),
    "llama-small": _llama,
}
KINDS: dict[str, Callable[[str], Subject]] = {
    "linear": _linear,
    "mlp": _mlp,
    "timm": _timm,
    "torchvision": _torchvision,
}
