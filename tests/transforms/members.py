"""What tests of all members of Sparse-IFT share: the members with their options, and models."""

from functools import partial

import pytest
import torch
from torch import nn

from cutwork.models.torchvision import import_torchvision
from cutwork.transforms import doped, factorized, parallel

MEMBERS = {
    "parallel": parallel,
    "parallel-relu": partial(parallel, after="relu"),
    "parallel-norm-relu": partial(parallel, after="norm+relu"),
    "factorized": factorized,
    "factorized-norm": partial(factorized, between="norm"),
    "factorized-norm-relu": partial(factorized, between="norm+relu"),
    "factorized-dense-second": partial(factorized, dense_second=True),
    "doped": doped,
}
ALL = ("wide", "parallel", "factorized", "doped", "wide_factorized")
LINEAR = ("parallel", "factorized", "doped")


class Mixer(nn.Module):
    """One block of an MLP-Mixer on 16 patches."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.tokens = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.channels = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x).flatten(2).mT
        x = x + self.tokens(self.norms[0](x).mT).mT
        x = x + self.channels(self.norms[1](x))
        return self.head(self.norms[2](x).mean(1))


def make_mlp():
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def make_cnn(**options):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, **options),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def make_model(name):
    """Return a model and inputs for it."""
    image = torch.rand(2, 3, 32, 32)
    if name in ("resnet18", "mobilenet_v2", "vit"):
        pytest.importorskip("torchvision")
        models = import_torchvision().models
        if name == "vit":
            sizes = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2}
            return models.VisionTransformer(**sizes, hidden_dim=64, mlp_dim=128, num_classes=10), image
        return getattr(models, name)(num_classes=10), image
    if name in ("bert", "gpt2"):
        transformers = pytest.importorskip("transformers")
        tokens = torch.randint(100, (2, 8))
        if name == "gpt2":
            sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 100}
            config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
            return transformers.GPT2LMHeadModel(config), tokens
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
        return transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=100)), tokens
    return {"mlp": (make_mlp(), torch.rand(4, 20)), "cnn": (make_cnn(), image), "mixer": (Mixer(), image)}[name]


def first_of(output):
    """Return the tensor that matters in what a model returned."""
    return output if isinstance(output, torch.Tensor) else output[0]
