"""Small models of the kinds that people train, each with inputs; what the tests of transforms share."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

models = pytest.importorskip("torchvision").models
timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

IMAGE = (2, 3, 32, 32)
TOKENS = torch.arange(24).view(2, 12) % 7


class PreActivationBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else None

    def forward(self, x):
        y = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(y))))


class PreActivationResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(PreActivationBlock(32, 32, 1), PreActivationBlock(32, 64, 2))
        self.norm, self.head = nn.BatchNorm2d(64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


class MixerBlock(nn.Module):
    def __init__(self, num_tokens, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(num_tokens, 32), nn.GELU(), nn.Linear(32, num_tokens))
        self.channels = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width))

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 8, 8)
        self.blocks = nn.Sequential(MixerBlock(16, 64), MixerBlock(16, 64))
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.norm(self.blocks(self.stem(x).flatten(2).transpose(1, 2))).mean(1))


class Encoder(nn.Module):
    """A transformer of PyTorch's own layers, with a table of positions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(12, 64)
        self.positions = nn.Parameter(torch.randn(1, 16, 64) * 0.02)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.encoder(self.stem(x) + self.positions).mean(1))


class FusedAttention(nn.Module):
    """Heads that are split by their number, from one projection for queries, keys and values."""

    def __init__(self, width, num_heads):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))


class FusedTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(12, 64), nn.LayerNorm(64)
        self.attention, self.head = FusedAttention(64, 4), nn.Linear(64, 10)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.attention(self.norm(x))).mean(1))


class Flattened(nn.Module):
    """A convolution whose image is flattened, channel by channel, for a linear layer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, x):
        return self.layers(x)


class Grouped(nn.Module):
    """Convolutions in groups, and a group norm."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.GroupNorm(4, 32),
            nn.Conv2d(32, 64, 3, padding=1, groups=4),
            nn.ReLU(),
            nn.Conv2d(64, 64, 1),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


def inverted(expand, inputs, outputs, stride):
    return models.efficientnet.MBConvConfig(expand, 3, stride, inputs, outputs, 1, 1.0, 1.0)


def small_resnet(block, **options):
    """Build a network of two stages; the others hold most of the weights and nothing new."""
    model = models.ResNet(block, [1, 1, 1, 1], **options)
    model.layer3, model.layer4 = nn.Identity(), nn.Identity()
    model.fc = nn.Linear(128 * block.expansion, 10)
    return model


BERT_SIZES = {
    "vocab_size": 50,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
}
LLAMA_SIZES = {
    "vocab_size": 50,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
}
GPT2_SIZES = {
    "vocab_size": 50,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
BUILDERS = {
    "resnet-basic": lambda: small_resnet(models.resnet.BasicBlock),
    "resnet-bottleneck": lambda: small_resnet(models.resnet.Bottleneck),
    "resnext": lambda: small_resnet(models.resnet.Bottleneck, groups=8, width_per_group=8),
    "resnet-preactivation": PreActivationResNet,
    "mobilenet-v2": lambda: models.MobileNetV2(10, 0.5, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]]),
    "mobilenet-v3": lambda: models.mobilenet_v3_small(num_classes=10, width_mult=0.5),
    "efficientnet": lambda: models.EfficientNet(
        [inverted(1, 16, 16, 1), inverted(6, 16, 24, 2), inverted(6, 24, 24, 1)], 0.2, num_classes=10
    ),
    "convnext": lambda: models.ConvNeXt(
        [models.convnext.CNBlockConfig(32, 64, 1), models.convnext.CNBlockConfig(64, None, 1)], num_classes=10
    ),
    "densenet": lambda: models.DenseNet(16, (2, 2), 32, num_classes=10),
    "shufflenet": lambda: models.ShuffleNetV2([1, 2, 1], [16, 32, 64, 64, 128], num_classes=10),
    "vit": lambda: models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10),
    "mixer": Mixer,
    "mixer-timm": lambda: timm.models.MlpMixer(10, img_size=32, patch_size=8, num_blocks=1, embed_dim=64),
    "swin": lambda: models.SwinTransformer([4, 4], 32, [1, 1], [2, 4], [4, 4], num_classes=10),
    "swin-timm": lambda: timm.models.SwinTransformer(
        32, 4, num_classes=10, embed_dim=32, depths=(1, 1), num_heads=(2, 4), window_size=4
    ),
    "cait": lambda: timm.models.Cait(32, 8, num_classes=10, embed_dim=64, depth=1, num_heads=4, depth_token_only=1),
    "encoder": Encoder,
    "fused-attention": FusedTransformer,
    "flattened": Flattened,
    "grouped": Grouped,
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=5, **BERT_SIZES)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2_SIZES)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_SIZES)),
}
# Of these the outermost layers are so large a part that a quarter could not pay for them.
DENSITIES = {"mobilenet-v2": 0.5, "mobilenet-v3": 0.5, "shufflenet": 0.5, "flattened": 0.5}
# In models as small as these, whole ranks meet the budget at some densities only.
DENSITY_OF_PAIRS = DENSITIES | {"gpt2": 0.2, "convnext": 0.5, "mixer-timm": 0.4}
READING_TOKENS = ("bert", "gpt2", "llama")


def make_net(name, seed=0):
    """Return a model, with first weights."""
    torch.manual_seed(seed)
    return BUILDERS[name]()


def make_inputs(name):
    """Return what it is called with."""
    if name in READING_TOKENS:
        return {"input_ids": TOKENS}
    generator = torch.Generator().manual_seed(0)
    return torch.randn((2, 16, 12) if name in ("encoder", "fused-attention") else IMAGE, generator=generator)


def call(model, inputs):
    """Return the one result of a model that counts."""
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return output if isinstance(output, torch.Tensor) else output.logits


def look_trained(model, seed=0):
    """Give every parameter and statistic of a model, in place, numbers that none has at first."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return model
