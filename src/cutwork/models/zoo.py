"""Models to train, by name, for as many classes and for inputs of such a shape as the data has."""

import ast
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from cutwork.models.torchvision import import_torchvision
from cutwork.text import did_you_mean

# Images of more pixels a side meet a first convolution that makes them smaller.
LARGEST_SMALL = 64
EXAMPLES = ("mlp", "resnet18", "wrn-22-2", "vgg-d", "alexnet-s", "vit", "gpt")

Options = Mapping[str, Any]
# What was found in the name, how many classes, an input, and what stands behind the name.
Maker = Callable[[tuple[str, ...], int, Tensor, Options], nn.Module]


def make_model(name: str, *, num_classes: int, example: Tensor) -> nn.Module:
    """Return a model with random weights that takes inputs like `example` and tells so many classes apart.

    Behind the name may stand options of the function that makes it, as in `resnet18:width=32,preactivation=True`.

    >>> import torch
    >>> make_model("mlp:hidden=(32,)", num_classes=10, example=torch.zeros(1, 1, 8, 8))
    Sequential(
      (flatten): Flatten(start_dim=1, end_dim=-1)
      (fc1): Linear(in_features=64, out_features=32, bias=True)
      (relu1): ReLU()
      (head): Linear(in_features=32, out_features=10, bias=True)
    )
    """
    prefix, _, rest = name.partition(":")
    make, found, text = _find(name, prefix, rest)
    try:
        return make(found, num_classes, example, _read_options(name, text))
    except TypeError as error:
        # An option that its function does not have.
        raise ValueError(f"{name}: {error}") from error


def is_known(name: str) -> bool:
    """Say whether there are models of such a name; what stands behind the first colon may still be wrong.

    >>> is_known("resnet18:width=32"), is_known("resnet")
    (True, False)
    """
    prefix = name.partition(":")[0]
    return prefix in PACKAGES or any(re.fullmatch(form, prefix) for form in FAMILIES)


def _find(name: str, prefix: str, rest: str) -> tuple[Maker, tuple[str, ...], str]:
    if prefix in PACKAGES:
        found, _, text = rest.partition(":")
        return PACKAGES[prefix], (found,), text
    for form, make in FAMILIES.items():
        if match := re.fullmatch(form, prefix):
            return make, match.groups(), rest
    raise ValueError(
        f"unknown model {name!r}{did_you_mean(prefix, EXAMPLES)}; write {', '.join(EXAMPLES)} and the like, or "
        "torchvision:NAME, timm:NAME, transformers:NAME"
    )


def _read_options(name: str, text: str) -> dict[str, Any]:
    if not text:
        return {}
    # Commas inside brackets belong to a value.
    pieces = re.split(r",(?![^(]*\))", text)
    options = {}
    for piece in pieces:
        key, sign, value = piece.partition("=")
        if not (sign and key.isidentifier()):
            raise ValueError(f"{name}: {piece!r} is no option; write name:OPTION=VALUE,OPTION=VALUE")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return options


def _mlp(found: tuple[str, ...], num_classes: int, example: Tensor, options: Options) -> nn.Module:
    return make_mlp(example[0].numel(), num_classes=num_classes, **options)


def make_mlp(inputs: int, *, num_classes: int = 10, hidden: tuple[int, ...] = (512, 512, 512)) -> nn.Sequential:
    """Return linear layers of these widths, with ReLU between them."""
    model = nn.Sequential()
    model.add_module("flatten", nn.Flatten())
    for number, (before, after) in enumerate(pairwise((inputs, *hidden)), 1):
        model.add_module(f"fc{number}", nn.Linear(before, after))
        model.add_module(f"relu{number}", nn.ReLU())
    model.add_module("head", nn.Linear((inputs, *hidden)[-1], num_classes))
    return model


def _resnet(found: tuple[str, ...], num_classes: int, example: Tensor, options: Options) -> nn.Module:
    from cutwork.models.resnet import make_resnet

    stem: dict[str, Any] = {"stem": "large" if example.shape[-1] > LARGEST_SMALL else "small"}
    return make_resnet(int(found[0]), num_classes=num_classes, channels=example.shape[1], **(stem | dict(options)))


def _wide_resnet(found: tuple[str, ...], num_classes: int, example: Tensor, options: Options) -> nn.Module:
    from cutwork.models.wide_resnet import make_wide_resnet

    depth, widen = map(int, found)
    return make_wide_resnet(depth, widen, num_classes=num_classes, channels=example.shape[1], **options)


def _vgg(found: tuple[str, ...], num_classes: int, example: Tensor, options: Options) -> nn.Module:
    from cutwork.models.vgg import make_vgg

    kind = found[0] if found[0] == "like" else found[0].upper()
    return make_vgg(kind, num_classes=num_classes, channels=example.shape[1], **options)


def _alexnet(found: tuple[str, ...], num_classes: int, example: Tensor, options: Options) -> nn.Module:
    from cutwork.models.alexnet import make_alexnet

    return make_alexnet(found[0], num_classes=num_classes, channels=example.shape[1], **options)


def _vit(found: tuple[str, ...], num_classes: int, example: Tensor, options: Options) -> nn.Module:
    from cutwork.models.vit import make_vit

    return make_vit(example.shape[-1], num_classes=num_classes, channels=example.shape[1], **options)


def _gpt(found: tuple[str, ...], num_classes: int, example: Tensor, options: Options) -> nn.Module:
    from cutwork.models.gpt import make_gpt

    return make_gpt(**{"vocabulary": num_classes, "context": example.shape[1], **options})


def _torchvision(found: tuple[str, ...], num_classes: int, example: Tensor, options: Options) -> nn.Module:
    (name,) = found
    zoo = import_torchvision().models
    _check_known("torchvision", name, zoo.list_models())
    # Vision transformers have a size; other models take images of any.
    size = {"image_size": example.shape[-1]} if name.startswith("vit_") and not options.get("weights") else {}
    return _with_head(zoo.get_model, name, num_classes, {**size, **options})


def _with_head(make: Callable[..., nn.Module], name: str, num_classes: int, options: Options) -> nn.Module:
    """Return a model for so many classes, also one with trained weights, whose own head is for another number."""
    if not options.get("weights"):
        return make(name, num_classes=num_classes, **options)
    model = make(name, **options)
    heads = [(key, part) for key, part in model.named_modules() if isinstance(part, nn.Linear)]
    key, head = heads[-1]
    if head.out_features != num_classes:
        parent, _, last = key.rpartition(".")
        setattr(model.get_submodule(parent), last, nn.Linear(head.in_features, num_classes))
    return model


def _timm(found: tuple[str, ...], num_classes: int, example: Tensor, options: Options) -> nn.Module:
    (name,) = found
    import_torchvision()
    timm = import_module("timm")
    _check_known("timm", name.partition(".")[0], timm.list_models())
    given = {"in_chans": example.shape[1], "num_classes": num_classes, **options}
    try:
        return timm.create_model(name, **{"img_size": example.shape[-1], **given})
    except TypeError as error:
        if "img_size" not in str(error):
            raise
    return timm.create_model(name, **given)


def _transformers(found: tuple[str, ...], num_classes: int, example: Tensor, options: Options) -> nn.Module:
    (name,) = found
    transformers = import_module("transformers")
    config = transformers.AutoConfig.from_pretrained(name, num_labels=num_classes, **options)
    return transformers.AutoModelForImageClassification.from_config(config)


def _check_known(package: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise ValueError(f"{package} has no model {name!r}{did_you_mean(name, names)}")


FAMILIES: dict[str, Maker] = {
    r"mlp": _mlp,
    r"resnet(\d+)": _resnet,
    r"wrn-(\d+)-(\d+)": _wide_resnet,
    r"vgg-(c|d|like)": _vgg,
    r"alexnet-(s|b)": _alexnet,
    r"vit": _vit,
    r"gpt": _gpt,
}
PACKAGES: dict[str, Maker] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}
