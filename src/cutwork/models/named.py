"""The models that are measured, by name, with random weights, each with a way to make inputs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, final

import torch
from torch import Tensor, nn

from cutwork.memory import check_memory
from cutwork.models.torchvision import import_torchvision
from cutwork.text import arrow, did_you_mean, shape_of

# They decode from a cache, and are measured for inference only.
FORWARD_ONLY = ("llama-small",)
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


def make_subject(name: str) -> Subject:
    """Return the model with this name.

    >>> make_subject("mlp:16x64").inputs(3)[0].shape
    torch.Size([3, 16])
    """
    kind, _, rest = name.partition(":")
    if name in NAMED:
        return NAMED[name]()
    if kind not in KINDS or not rest:
        raise ValueError(
            f"unknown model {name!r}{did_you_mean(name, NAMED)}; write {', '.join(NAMED)}, linear:768x3072, "
            "mlp:768x3072, timm:NAME or torchvision:NAME"
        )
    return KINDS[kind](rest)


def title_of(name: str) -> str:
    """Return how results call a model.

    >>> title_of("mlp:768x3072"), title_of("vit-b16")
    ('mlp:768->3072', 'vit-b16')
    """
    kind, _, rest = name.partition(":")
    return f"{kind}:{arrow(*shape_of(rest))}" if kind in SIZED else name


def _linear(text: str) -> Subject:
    inputs, outputs = shape_of(text)
    check_memory(f"linear:{text}", 4 * inputs * outputs)
    return Subject(nn.Sequential(nn.Linear(inputs, outputs)), lambda batch: (torch.randn(batch, inputs),))


def _mlp(text: str) -> Subject:
    width, hidden = shape_of(text)
    check_memory(f"mlp:{text}", 8 * width * hidden)
    return Subject(MlpBlock(width, hidden), lambda batch: (torch.randn(batch, width),))


def _tiny() -> Subject:
    model = nn.Sequential(MlpBlock(64, 256), MlpBlock(64, 256), nn.Linear(64, 64))
    return Subject(model, lambda batch: (torch.randn(batch, 64),))


def _timm(name: str) -> Subject:
    import_torchvision()
    import timm

    return _of_images("timm", name, timm.create_model, timm.list_models)


def _torchvision(name: str) -> Subject:
    zoo = import_torchvision().models
    return _of_images("torchvision", name, zoo.get_model, zoo.list_models)


def _of_images(
    package: str, name: str, make: Callable[[str], nn.Module], names: Callable[[], Iterable[str]]
) -> Subject:
    try:
        model = make(name)
    except (RuntimeError, ValueError) as error:
        near = get_close_matches(name, list(names()))
        advice = f"did you mean {' or '.join(near)}?" if near else f"{package} lists its own by list_models()"
        raise ValueError(f"{package}:{name}: {error}; {advice}") from error
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
# Models whose name has a shape.
SIZED: dict[str, Callable[[str], Subject]] = {"linear": _linear, "mlp": _mlp}
KINDS: dict[str, Callable[[str], Subject]] = {
    **SIZED,
    "timm": _timm,
    "torchvision": _torchvision,
}
