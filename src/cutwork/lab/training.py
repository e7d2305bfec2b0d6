"""Everything that decides a training run, as numbers and names. Nothing heavy is imported here."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, Self, final, get_args, get_origin

from cutwork.text import did_you_mean


@final
@dataclass(frozen=True)
class Sparse:
    """What is sparse, and how masks move.

    Args:
        pattern: Which masks are legal: dense, unstructured, block:16, vector:16, shuffled:16, 2:4 and others.
        density: Share of the weights that is kept; without it the pattern's own, or a tenth.
        layers: Which layers are sparse: all, linears, mlp, convs, or globs over names divided by commas. The first
            layer and the last never are unless `ends` says so.
        ends: Let the first layer and the last be sparse too.
        skip: Leave dense which of these cannot be sparse so, and say which and why, instead of refusing the run.
        member: A larger model at the dense one's operations: wide, parallel, factorized, doped or wide-factorized of
            Sparse-IFT, at this density.
        between: What stands between factors, or behind branches, of a member: linear, norm, relu or norm+relu.
        method: How masks move: static, rigl, set, gradual, granet, srigl, dsb, ssb, supermask, spartan,
            ste, srste.
        every: Steps between moves; without it the method's own.
        begin: When masks begin to move, as a share of the run below 1 or else a step.
        until: When they stop, likewise.
        fraction: Share of what is kept that the first moves exchange.
        sparse_from: Train densely before this share of the run, or step.
        dense_from: Train densely after this share of the run, or step.
        allocation: How layers share the density: uniform, er, erk and others.
        init: First masks: random, magnitude, balanced, snip, synflow and others; without it by how the weights look.
        budget: Share of the dense model's time that a step may take: pattern and density follow from measuring here.
        budget_of: What is measured: a training step, or for inference a forward pass of a test batch, packed.
        budget_patterns: Patterns to choose among; without them the run's own, or those that cutwork.plan proposes.
        drop_connect: Share of the kept units that each step leaves out by chance.
        storage: Where weights lie: compressed, dense, or auto, which is compressed where all masks can be.
    """

    pattern: str = "dense"
    density: float | None = None
    layers: str = "all"
    ends: bool = False
    skip: bool = False
    member: str | None = None
    between: str = "norm+relu"
    method: str = "static"
    every: int | None = None
    begin: float | None = None
    until: float | None = None
    fraction: float | None = None
    sparse_from: float = 0.0
    dense_from: float | None = None
    allocation: str = "uniform"
    init: str | None = None
    budget: float | None = None
    budget_of: Literal["step", "inference"] = "step"
    budget_patterns: tuple[str, ...] = ()
    drop_connect: float = 0.0
    storage: Literal["auto", "compressed", "dense"] = "auto"

    def __post_init__(self) -> None:
        _check_names(self)


@final
@dataclass(frozen=True)
class Optimizing:
    """How weights are updated.

    Args:
        optimizer: sgd, nesterov, rmsprop, adam or adamw.
        lr: Learning rate of dense layers at its highest.
        lr_power: Sparse layers have it divided by their density to this power.
        momentum: Of sgd, nesterov and rmsprop.
        weight_decay: Of weights; norms and biases have none unless `decay_all`.
        decay_all: Let norms and biases decay too.
        schedule: How the rate falls: constant, cosine, step, exponential or linear.
        milestones: Epochs after which the schedule step multiplies by gamma; without them every `step_size` epochs.
        step_size: Epochs between the steps of the schedule step.
        gamma: What step and exponential multiply by.
        lr_min: The rate that cosine and linear end with.
        warmup: Epochs in which the rate rises.
        warmup_from: Share of the rate that it rises from.
        clip: Largest norm of the gradient, unless 0.
        accumulate: Batches whose gradients make one step.
        label_smoothing: Share of each label that is spread over all classes.
        smoothing_form: torch spreads it over all classes and sums to one; dsb as the shuffled-block code does, whose
            labels sum to one less a class's share.
        teacher: Run folder of a model whose answers are learned too.
        teacher_weight: Share of the loss that is the teacher's.
        temperature: By which the teacher's answers are softened.
    """

    optimizer: Literal["sgd", "nesterov", "rmsprop", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    lr_power: float = 0.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_all: bool = False
    schedule: Literal["constant", "cosine", "step", "exponential", "linear"] = "cosine"
    milestones: tuple[float, ...] = ()
    step_size: float = 30.0
    gamma: float = 0.1
    lr_min: float = 0.0
    warmup: float = 0.0
    warmup_from: float = 0.01
    clip: float = 0.0
    accumulate: int = 1
    label_smoothing: float = 0.0
    smoothing_form: Literal["torch", "dsb"] = "torch"
    teacher: str | None = None
    teacher_weight: float = 0.5
    temperature: float = 4.0

    def __post_init__(self) -> None:
        _check_names(self)


@final
@dataclass(frozen=True)
class Reading:
    """What is learned from.

    Args:
        data: digits, fashion-mnist, cifar10, cifar100, tiny-imagenet, imagenet, folder:PATH, fake:3x224x224, text, or
            text:FILE.
        data_folder: Where its files lie, if not where they usually do.
        download: Fetch missing files, where the data set has an address.
        augment: What is done to training images, divided by commas: crop, flip, resized-crop, rotate:20, erasing,
            randaugment, trivialaugment, mixup:0.2, cutmix:1.0.
        repeats: How often an image comes in an epoch, each time augmented anew; of the others the fewer come.
        train_crop: Pixels of a side of training images in files.
        test_crop: The same of test images.
        test_resize: Pixels of the shorter side of test images before they are cut.
        interpolation: How images in files are resized: bilinear, bicubic, nearest.
        context: Bytes of text in an example.
        workers: Processes that read images in files, beside this one.
    """

    data: str = "digits"
    data_folder: str | None = None
    download: bool = False
    augment: str = ""
    repeats: int = 1
    train_crop: int | None = None
    test_crop: int | None = None
    test_resize: int | None = None
    interpolation: str = "bilinear"
    context: int | None = None
    workers: int = 0


@final
@dataclass(frozen=True)
class Running:
    """How the run goes on this machine.

    Args:
        batch: Examples in each process's batch.
        test_batch: Examples at once where it is judged.
        epochs: How often the training data is seen.
        steps: End after so many steps, whatever the epochs say.
        seed: Fixes every random choice.
        device: cpu, cuda, or auto.
        precision: fp32, or bf16 and fp16, which compute under autocast.
        ema: Share of the average of weights that each step keeps; 0 keeps no average.
        shard: Share out weights and what the optimizer remembers over all processes (FSDP2), where each has all else.
        sync_bn: Let batch norms see the batches of all processes.
        compiled: Compile the model.
        fused: Let layers do what stands next to them, where the model is compressed.
        deterministic: Refuse operations whose results differ from run to run.
        save_every: Epochs between checkpoints.
        log_every: Steps between lines.
        log: Write curves for these too: tensorboard, wandb.
    """

    batch: int = 128
    test_batch: int = 500
    epochs: float = 10.0
    steps: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float = 0.0
    shard: bool = False
    sync_bn: bool = False
    compiled: bool = False
    fused: bool = False
    deterministic: bool = False
    save_every: int = 1
    log_every: int = 50
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_names(self)


@final
@dataclass(frozen=True)
class Training:
    """A training run.

    Args:
        model: resnet18, wrn-22-2, vgg-d, alexnet-s, mlp, gpt, or torchvision:NAME, timm:NAME, transformers:NAME.
        weights: Checkpoint of this package to begin with, such as a run's best.safetensors. Trained weights of
            torchvision are an option of the model: torchvision:vit_b_16:weights=DEFAULT.
    """

    model: str = "resnet8"
    weights: str | None = None
    reading: Reading = field(default_factory=Reading)
    sparse: Sparse = field(default_factory=Sparse)
    optimizing: Optimizing = field(default_factory=Optimizing)
    running: Running = field(default_factory=Running)

    def to_json(self) -> str:
        """Write it as text.

        >>> Training.from_json(Training(model="mlp").to_json()) == Training(model="mlp")
        True
        """
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read it from text; a field that does not exist is refused by name."""
        return _read(cls, json.loads(text), "")

    def having(self, **options: Any) -> Self:
        """Return it with other options, each called by its own name alone.

        >>> Training().having(lr=0.3, epochs=1, pattern="2:4").optimizing.lr
        0.3
        """
        given = dict(options)
        parts: dict[str, Any] = {name: given.pop(name) for name in [*given] if name in _names(type(self))}
        for part in PARTS:
            own = getattr(self, part)
            mine = {name: given.pop(name) for name in [*given] if name in _names(type(own))}
            parts[part] = replace(parts.get(part, own), **mine)
        if given:
            raise ValueError(_unknown(next(iter(given)), all_options()))
        return replace(self, **parts)


PARTS: dict[str, type] = {"reading": Reading, "sparse": Sparse, "optimizing": Optimizing, "running": Running}


def all_options() -> tuple[str, ...]:
    """Return the names of all options of a run.

    >>> {"lr", "pattern", "epochs", "model"} <= {*all_options()}
    True
    """
    own = [name for name in _names(Training) if name not in PARTS]
    return (*own, *(name for kind in PARTS.values() for name in _names(kind)))


def _check_names(options: Any) -> None:
    """Raise ValueError where one of several names is asked for and another was given."""
    for each in fields(options):
        given = getattr(options, each.name)
        if get_origin(each.type) is Literal and given not in get_args(each.type):
            known = get_args(each.type)
            raise ValueError(f"unknown {each.name} {given!r}{did_you_mean(given, known)}; write {', '.join(known)}")


def _names(kind: type) -> list[str]:
    return [each.name for each in fields(kind)]


def _unknown(name: str, known: tuple[str, ...]) -> str:
    return f"there is no option {name!r}{did_you_mean(name, known)}"


def _read(kind: Any, given: Mapping[str, Any], where: str) -> Any:
    values: dict[str, Any] = {}
    defaults = kind()
    for name, value in given.items():
        if name not in _names(kind):
            raise ValueError(_unknown(where + name, tuple(where + each for each in _names(kind))))
        default = getattr(defaults, name)
        if is_dataclass(default):
            values[name] = _read(type(default), value, f"{name}.")
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
