"""Models that strangers wrote go through their whole life in both storages: trained, saved, loaded, packed, baked."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cutwork as cw
from cutwork.methods import Method
from cutwork.models.torchvision import import_torchvision
from cutwork.training.sparsifier import Sparsifier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.grid,
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"),
]

STEPS = 10
# Each moves three times in the steps of a life, and once in those of the comparison of storages.
MOVES: dict[str, Any] = {"every": 3, "until": STEPS, "fraction": cw.cosine(0.5)}
RIGL, ESTIMATED, SET = cw.RigL(**MOVES), cw.RigL(**MOVES, estimate=True), cw.set_(**MOVES)
OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, lr=3e-3),
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
}
DENSITY = 0.4

Inputs = tuple[Tensor | None, ...]


def chance(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images() -> Inputs:
    return (torch.randn(4, 3, 32, 32, generator=chance()),)


def channels_last_images() -> Inputs:
    return (torch.randn(4, 3, 32, 32, generator=chance()).to(memory_format=torch.channels_last),)


def small_images() -> Inputs:
    return (torch.randn(4, 3, 28, 28, generator=chance()),)


def tokens() -> Inputs:
    return (torch.randint(4, 64, (4, 12), generator=chance()),)


def two_sentences() -> Inputs:
    """Return the tokens of an encoder, no mask, and the tokens of a decoder."""
    return (*tokens(), None, *tokens())


def sound_and_sentence() -> Inputs:
    return (torch.randn(4, 8, 32, generator=chance()), None, *tokens())


def sentence_and_image() -> Inputs:
    return (*tokens(), *images())


def sequences() -> Inputs:
    return (torch.randn(4, 12, 32, generator=chance()), torch.randn(4, 7, 32, generator=chance()))


def torchvision() -> ModuleType:
    pytest.importorskip("torchvision")
    return import_torchvision().models


def timm() -> ModuleType:
    # It imports torchvision, which has to be made importable first.
    torchvision()
    return pytest.importorskip("timm")


def transformers() -> ModuleType:
    return pytest.importorskip("transformers")


class LeNet(nn.Module):
    """The first network of PyTorch's tutorials; those look at the memory of an image as a row, by `view`."""

    def __init__(self, row=torch.Tensor.reshape):
        super().__init__()
        self.row = row
        self.conv1, self.conv2, self.pool = nn.Conv2d(3, 8, 5), nn.Conv2d(8, 16, 5), nn.MaxPool2d(2, 2)
        self.fc1, self.fc2 = nn.Linear(16 * 5 * 5, 32), nn.Linear(32, 10)

    def forward(self, x):
        x = self.pool(nn.functional.relu(self.conv1(x)))
        x = self.pool(nn.functional.relu(self.conv2(x)))
        return self.fc2(nn.functional.relu(self.fc1(self.row(x, (-1, 16 * 5 * 5)))))


class Reader(nn.Module):
    """A reader of text: convolutions before in-place activations, an LSTM, and a layer called by keyword."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.SiLU(inplace=True), nn.MaxPool2d((4, 2))),
        )
        self.rnn = nn.LSTM(128, 24, bidirectional=True, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, x):
        columns = self.features(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(input=self.rnn(columns)[0]).mean(1)


def seq2seq() -> nn.Module:
    return nn.Transformer(32, 2, 1, 1, 64, batch_first=True)


def vgg() -> nn.Module:
    # As it comes, its classifier has a hundred million weights.
    classifier = nn.Sequential(
        *(nn.Linear(32, 64), nn.ReLU(inplace=True), nn.Dropout()),
        *(nn.Linear(64, 64), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(64, 10)),
    )
    features = torchvision().vgg.make_layers([16, "M", 32, "M", 32, "M"])
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), classifier)


def squeezenet() -> nn.Module:
    network = torchvision().squeezenet
    model = network.SqueezeNet("1_1", num_classes=10)
    model.features = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(inplace=True)),
        *(network.Fire(16, 8, 16, 16), network.Fire(32, 8, 16, 16)),
    )
    # Without dropout, which draws its numbers in the order of memory: that differs after compressed convolutions.
    model.classifier = nn.Sequential(nn.Conv2d(32, 10, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))
    return model


def mobilenet_v2() -> nn.Module:
    settings = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 2, 2]]
    return torchvision().MobileNetV2(10, width_mult=0.25, inverted_residual_setting=settings)


def mobilenet_v3() -> nn.Module:
    network = torchvision().mobilenetv3
    first = network.InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1)
    second = network.InvertedResidualConfig(16, 5, 48, 24, True, "HS", 2, 1, 1)
    return network.MobileNetV3([first, second], last_channel=64, num_classes=10)


def regnet() -> nn.Module:
    network = torchvision().regnet
    sizes = {"depths": [1, 2], "widths": [16, 32], "group_widths": [8, 8], "strides": [2, 2]}
    blocks = network.BlockParams(**sizes, bottleneck_multipliers=[1.0, 1.0], se_ratio=0.25)
    return network.RegNet(blocks, num_classes=10)


def channels_last_regnet() -> nn.Module:
    return regnet().to(memory_format=torch.channels_last)


def efficientnet() -> nn.Module:
    network = torchvision().efficientnet
    fused, inverted = network.FusedMBConvConfig(1, 3, 1, 16, 16, 1), network.MBConvConfig(4, 3, 2, 16, 24, 2)
    return network.EfficientNet([fused, inverted], dropout=0.2, num_classes=10, last_channel=64)


def densenet() -> nn.Module:
    # Saving memory, it computes its layers once more in backward.
    options: dict[str, Any] = {"growth_rate": 8, "num_init_features": 16, "bn_size": 2, "memory_efficient": True}
    return torchvision().DenseNet(block_config=(2, 2), num_classes=10, **options)


def shufflenet() -> nn.Module:
    return torchvision().ShuffleNetV2([1, 2, 1], [16, 32, 48, 64, 64], num_classes=10)


def convnext() -> nn.Module:
    network = torchvision().convnext
    blocks = [network.CNBlockConfig(24, 48, 1), network.CNBlockConfig(48, None, 1)]
    return network.ConvNeXt(blocks, stochastic_depth_prob=0.1, num_classes=10, layer_scale=1.0)


def swin() -> nn.Module:
    network = torchvision().swin_transformer
    return network.SwinTransformer([4, 4], 24, [1, 1], [2, 4], [2, 2], num_classes=10)


def timm_resnet() -> nn.Module:
    # Squeezes and excites, and adds the shortcut in place.
    return timm().create_model("seresnet18", layers=(1, 1, 1, 1), channels=(8, 16, 16, 16), num_classes=10)


def timm_efficientnet() -> nn.Module:
    network = timm()
    blocks = network.models._efficientnet_builder.decode_arch_def(
        [["ds_r1_k3_s1_e1_c16_se0.25"], ["ir_r1_k3_s2_e4_c24"]]
    )
    options = {"stem_size": 16, "num_features": 48, "pad_type": "same", "drop_path_rate": 0.1}
    return network.models.efficientnet.EfficientNet(blocks, num_classes=10, **options)


def mixer() -> nn.Module:
    options: dict[str, Any] = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 48}
    return timm().models.mlp_mixer.MlpMixer(num_classes=10, drop_path_rate=0.1, **options)


def deit() -> nn.Module:
    options = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}
    name = "deit_tiny_distilled_patch16_224"
    return timm().create_model(name, num_classes=10, drop_rate=0.1, drop_path_rate=0.1, **options)


def eva() -> nn.Module:
    options = {"img_size": 28, "depth": 1, "embed_dim": 48, "num_heads": 3}
    return timm().create_model("eva02_tiny_patch14_224", num_classes=10, **options)


BERT_SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 32,
}  # fmt: skip
ENCODER_DECODER_SIZES = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 3,
}  # fmt: skip


def bert() -> nn.Module:
    return transformers().BertForMaskedLM(transformers().BertConfig(num_hidden_layers=1, **BERT_SIZES))


def albert() -> nn.Module:
    config = transformers().AlbertConfig(num_hidden_layers=3, embedding_size=16, **BERT_SIZES)
    return transformers().AlbertForMaskedLM(config)


def t5() -> nn.Module:
    sizes: dict[str, Any] = {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    return transformers().T5ForConditionalGeneration(transformers().T5Config(decoder_start_token_id=0, **sizes))


def bart() -> nn.Module:
    config = transformers().BartConfig(max_position_embeddings=32, **ENCODER_DECODER_SIZES)
    return transformers().BartForConditionalGeneration(config)


def whisper() -> nn.Module:
    sizes = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
    config = transformers().WhisperConfig(**sizes, **ENCODER_DECODER_SIZES)
    return transformers().WhisperForConditionalGeneration(config)


def clip() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers().CLIPConfig(
        text_config={**sizes, **text}, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16
    )
    return transformers().CLIPModel(config)


def mistral() -> nn.Module:
    config = transformers().MistralConfig(
        num_hidden_layers=2, num_key_value_heads=1, sliding_window=8, tie_word_embeddings=False, **BERT_SIZES
    )
    model = transformers().MistralForCausalLM(config)
    model.gradient_checkpointing_enable()
    return model


def mamba() -> nn.Module:
    config = transformers().MambaConfig(vocab_size=64, hidden_size=32, state_size=8, num_hidden_layers=1)
    return transformers().MambaForCausalLM(config)


def first_gpt() -> nn.Module:
    config = transformers().OpenAIGPTConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    return transformers().OpenAIGPTLMHeadModel(config)


@dataclass(frozen=True)
class Stranger:
    """A model that others wrote: what it is given, and what is to become sparse of it, and how.

    `refused` says of layers that are left dense why sparsify() would not take them. The layer `bypassed` is left dense
    too: its parent reads the weight without calling the layer.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs] = images
    patterns: Mapping[str, str] = field(default_factory=lambda: {"*": "block:8x1"})
    method: Method = RIGL
    optimizer: str = "adamw"
    refused: Mapping[str, str] = field(default_factory=dict)
    bypassed: str = ""

    @property
    def accepted(self) -> dict[str, str]:
        """Return the patterns with which all goes well."""
        return {**self.patterns, **dict.fromkeys(self.refused, "dense")}

    @property
    def bypassing(self) -> dict[str, str]:
        """Return the patterns that make the bypassed layer sparse too."""
        return {**self.accepted, self.bypassed: self.patterns["*"]}


TIED = r"shares its weight with \S+ \(\w*Embedding\), which would stay dense"
SUBCLASS = r"timm\.\S+\.Conv2dSame is a subclass that may compute something else"

STRANGERS = {
    "lenet": Stranger(LeNet, patterns={"*": "block:4"}, optimizer="sgd"),
    "crnn": Stranger(Reader, patterns={"*": "block:8"}),
    "torch transformer": Stranger(seq2seq, sequences, method=ESTIMATED),
    "torchvision vgg": Stranger(vgg, patterns={"*": "block:8", "3.6": "dense"}),
    "torchvision squeezenet": Stranger(squeezenet, patterns={"*": "shuffled:4", "features.0": "dense"}),
    "torchvision mobilenet v2": Stranger(mobilenet_v2, method=SET),
    "torchvision mobilenet v3": Stranger(mobilenet_v3, optimizer="sgd"),
    "torchvision regnet": Stranger(regnet, patterns={"*": "block:4x2", "stem.*": "dense", "fc": "dense"}),
    "torchvision regnet, channels last": Stranger(channels_last_regnet, channels_last_images, optimizer="sgd"),
    "torchvision efficientnet": Stranger(efficientnet, patterns={"*": "vector:8", "classifier.*": "dense"}),
    "torchvision densenet": Stranger(densenet),
    "torchvision shufflenet": Stranger(shufflenet, optimizer="sgd"),
    "torchvision convnext": Stranger(convnext, method=SET),
    "torchvision swin": Stranger(
        swin, patterns={"*": "block:8x1", "*.attn.*": "dense"}, bypassed="features.1.0.attn.qkv"
    ),
    "timm resnet": Stranger(timm_resnet, optimizer="sgd"),
    "timm efficientnet": Stranger(
        timm_efficientnet, refused={"conv_stem": f"and 1 other: {SUBCLASS}", "blocks.1.0.conv_dw": SUBCLASS}
    ),
    "timm mixer": Stranger(mixer, patterns={"*": "block:8", "head": "dense"}),
    "timm deit": Stranger(deit, patterns={"*": "shuffled:8", "head*": "dense"}, method=ESTIMATED),
    "timm eva": Stranger(
        eva, small_images, patterns={"*": "block:8x1", "*.qkv": "dense"}, bypassed="blocks.0.attn.qkv"
    ),
    "transformers bert": Stranger(bert, tokens, refused={"cls.predictions.decoder": TIED}),
    "transformers albert": Stranger(albert, tokens, refused={"predictions.decoder": TIED}),
    "transformers t5": Stranger(t5, two_sentences, refused={"lm_head": TIED}),
    "transformers bart": Stranger(bart, two_sentences, patterns={"*": "block:8"}, refused={"lm_head": TIED}),
    "transformers whisper": Stranger(whisper, sound_and_sentence, method=SET, refused={"proj_out": TIED}),
    "transformers clip": Stranger(clip, sentence_and_image),
    "transformers mistral": Stranger(mistral, tokens, optimizer="sgd"),
    "transformers mamba": Stranger(
        mamba,
        tokens,
        patterns={"*": "block:8x1", "*.dt_proj": "dense"},
        refused={"lm_head": TIED},
        bypassed="backbone.layers.0.mixer.dt_proj",
    ),
    "transformers gpt": Stranger(first_gpt, tokens, refused={"lm_head": TIED}, optimizer="sgd"),
}
STORAGES = ("dense", "compressed")


def prepared(stranger: Stranger, storage: str) -> tuple[nn.Module, Sparsifier, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = stranger.build()
    return model, *followed(model, stranger, storage, stranger.accepted)


def followed(
    model: nn.Module, stranger: Stranger, storage: str, patterns: Mapping[str, str]
) -> tuple[Sparsifier, torch.optim.Optimizer]:
    sparsifier = cw.sparsify(model, patterns, density=DENSITY, method=stranger.method, storage=storage, track=True)
    optimizer = OPTIMIZERS[stranger.optimizer](model.parameters())
    sparsifier.attach(optimizer)
    return sparsifier, optimizer


def output_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """Return the logits, by whatever name."""
    given = model(*inputs)
    for name in ("logits", "logits_per_image"):
        given = getattr(given, name, given)
    return given


def loss_of(model: nn.Module, inputs: Inputs, step: int) -> Tensor:
    output = output_of(model, inputs).flatten(0, -2)
    wanted = torch.randint(0, output.shape[-1], (len(output),), generator=chance(step))
    return nn.functional.cross_entropy(output, wanted)


@torch.no_grad()
def evaluated(model: nn.Module, inputs: Inputs) -> Tensor:
    return output_of(model.eval(), inputs).clone()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Inputs, steps: int) -> list[float]:
    """Train a model as everybody does, and return the losses."""
    # Dropout and the like draw the same numbers in both storages.
    torch.manual_seed(1)
    losses = []
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, inputs, step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@dataclass
class Life:
    """A model after its training, and what it returned then."""

    name: str
    model: nn.Module
    sparsifier: Sparsifier
    optimizer: torch.optim.Optimizer
    losses: list[float]
    inputs: Inputs
    output: Tensor

    def copy(self) -> nn.Module:
        """Return a model of its own for each way on."""
        return copy.deepcopy(self.model)


@pytest.fixture(scope="module", params=STRANGERS)
def stranger_name(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=STORAGES)
def kept_in(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def life(stranger_name, kept_in) -> Life:
    name, storage = stranger_name, kept_in
    stranger = STRANGERS[name]
    model, sparsifier, optimizer = prepared(stranger, storage)
    inputs = stranger.inputs()
    losses = train(model, optimizer, inputs, STEPS)
    return Life(name, model, sparsifier, optimizer, losses, inputs, evaluated(model, inputs))


def test_strangers_train_with_masks_that_move(life):
    assert torch.tensor(life.losses).isfinite().all()
    assert life.sparsifier.steps_done == STEPS
    moved = [name for name, seen in life.sparsifier.exploration.items() if any(seen.turnovers)]
    assert len(moved) > len(life.sparsifier.layers) / 2
    for name, layer in life.sparsifier.layers.items():
        weight, mask = layer.sparsity.matrix(layer.trained), layer.sparsity.mask_matrix()
        assert not weight[~mask].any(), name
        assert weight.any(), name
        assert layer.sparsity.fits(layer.trained), name


def test_strangers_compute_the_same_bits_after_loading_in_another_process(life, loader, tmp_path):
    cw.save(life.model, tmp_path / "life.safetensors", sparsifier=life.sparsifier, optimizer=life.optimizer)
    assert torch.equal(loader(life.name, tmp_path / "life.safetensors"), life.output)


@pytest.mark.parametrize("forms", [None, "tiles", "dense"])
def test_strangers_compute_the_same_when_packed(life, forms):
    model = life.copy()
    inputs = life.inputs if forms is None else ()
    cw.pack(model, *inputs, forms=forms, seconds=1e-4, cache=False)
    torch.testing.assert_close(evaluated(model, life.inputs), life.output, rtol=1e-4, atol=1e-5)


def test_strangers_come_back_dense(life):
    model = life.copy()
    masks = cw.bake(model)
    torch.testing.assert_close(evaluated(model, life.inputs), life.output, rtol=1e-4, atol=1e-5)
    twin = STRANGERS[life.name].build()
    assert [type(module) for module in model.modules()] == [type(module) for module in twin.modules()]
    twin.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(evaluated(twin, life.inputs), life.output, rtol=1e-4, atol=1e-5)
    if "channels last" not in life.name:
        # A weight that lies in memory in another way makes a layer return images that do so too.
        strides = {name: parameter.stride() for name, parameter in twin.named_parameters()}
        assert {name: parameter.stride() for name, parameter in model.named_parameters()} == strides
    assert set(masks) == set(life.sparsifier.layers)


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_train_the_same_in_both_storages(name):
    stranger = STRANGERS[name]
    trained = []
    for storage in STORAGES:
        torch.manual_seed(0)
        model = stranger.build().double()
        sparsifier, optimizer = followed(model, stranger, storage, stranger.accepted)
        inputs = tuple(x.double() if x is not None and x.is_floating_point() else x for x in stranger.inputs())
        trained.append((train(model, optimizer, inputs, 5), sparsifier.layers))
    (losses, layers), (expected_losses, twins) = trained
    # Some of these models compute in single precision here and there.
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    for path, layer in layers.items():
        twin = twins[path]
        assert torch.equal(layer.sparsity.mask_matrix(), twin.sparsity.mask_matrix()), path
        matrices = [each.sparsity.matrix(each.trained) for each in (layer, twin)]
        torch.testing.assert_close(*matrices, rtol=1e-4, atol=1e-6, msg=lambda text, path=path: f"{path}: {text}")


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("name", "layer"), [(name, layer) for name, stranger in STRANGERS.items() for layer in stranger.refused]
)
def test_layers_of_strangers_that_cannot_be_sparse_are_refused_by_name(name, layer, storage):
    stranger = STRANGERS[name]
    model = stranger.build()
    before = copy.deepcopy(model)
    # A refusal tells how to leave the layer out; what comes before it in the model is left out already.
    earlier = list(stranger.refused)[: list(stranger.refused).index(layer)]
    patterns = {**stranger.patterns, **dict.fromkeys(earlier, "dense")}
    with pytest.raises(ValueError, match=stranger.refused[layer]) as error:
        cw.sparsify(model, patterns, density=DENSITY, storage=storage)
    assert str(error.value).startswith(layer)
    assert f"{{'{layer}': 'dense'" in str(error.value)
    assert [type(module) for module in model.modules()] == [type(module) for module in before.modules()]
    assert all(torch.equal(value, before.state_dict()[key]) for key, value in model.state_dict().items())


BYPASSED = [name for name, stranger in STRANGERS.items() if stranger.bypassed]


@pytest.mark.parametrize("name", BYPASSED)
def test_a_dense_weight_that_is_read_past_its_mask_is_named_in_the_first_step(name):
    stranger = STRANGERS[name]
    model = stranger.build()
    _, optimizer = followed(model, stranger, "dense", stranger.bypassing)
    with pytest.raises(ValueError, match="reads its weight without calling the layer") as error:
        train(model, optimizer, stranger.inputs(), 1)
    assert str(error.value).startswith(f"{stranger.bypassed}: ")
    assert f"{{'{stranger.bypassed}': 'dense'}}" in str(error.value)


@pytest.mark.parametrize("name", BYPASSED)
def test_a_compressed_weight_that_is_read_past_its_layer_trains_all_the_same(name):
    stranger = STRANGERS[name]
    torch.manual_seed(0)
    model = stranger.build()
    sparsifier, optimizer = followed(model, stranger, "compressed", stranger.bypassing)
    layer = sparsifier.layers[stranger.bypassed]
    before = layer.sparsity.matrix(layer.trained)
    inputs = stranger.inputs()
    train(model, optimizer, inputs, 4)
    assert any(sparsifier.exploration[stranger.bypassed].turnovers)
    stayed = layer.sparsity.mask_matrix() & (before != 0)
    assert (layer.sparsity.matrix(layer.trained) != before)[stayed].all()
    output = evaluated(model, inputs)
    with torch.inference_mode():
        torch.testing.assert_close(output_of(model, inputs), output)
    cw.bake(model)
    torch.testing.assert_close(evaluated(model, inputs), output, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def loader() -> Iterator[Callable[[str, Path], Tensor]]:
    """Return what loads a file in another process, into a new model, and returns what that computes."""
    command = [sys.executable, str(Path(__file__))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def load(name: str, path: Path) -> Tensor:
            print(name, path, sep="\t", file=process.stdin, flush=True)
            # Libraries say this and that on the way.
            answer = next((line for line in process.stdout if line.startswith(ANSWER)), "the process has ended")
            assert answer == f"{ANSWER}done\n", answer
            return torch.load(path.with_suffix(".pt"))

        yield load
        process.stdin.close()


ANSWER = "answer: "


def answer_requests() -> None:
    """Load the files that are asked for, one a line, and leave beside each what the model computes."""
    torch.set_num_threads(1)
    if find_spec("torchvision"):
        import_torchvision()
    for line in sys.stdin:
        name, path = line.rstrip("\n").split("\t")
        try:
            model = STRANGERS[name].build()
            cw.load(path, model)
            torch.save(evaluated(model, STRANGERS[name].inputs()), Path(path).with_suffix(".pt"))
        except Exception as error:
            print(f"{ANSWER}{error!r}".replace("\n", " "), flush=True)
        else:
            print(f"{ANSWER}done", flush=True)


if __name__ == "__main__":
    answer_requests()


def test_an_image_out_of_a_compressed_convolution_is_no_row_in_memory_and_pack_sees_to_that():
    x = torch.randn(2, 3, 32, 32)
    model = LeNet(torch.Tensor.view).eval()
    cw.sparsify(model, "block:4", density=0.3)
    expected = model(x)
    plan = cw.pack(model, x, forms="tiles")
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert any("view size is not compatible" in row.reason for row in plan.rows)
    model = LeNet(torch.Tensor.view)
    cw.sparsify(model, "block:4", density=0.3, storage="compressed")
    with pytest.raises(RuntimeError, match=r"Use .reshape\(...\) instead"):
        model(x)
