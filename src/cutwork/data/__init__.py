"""Data sets, loaded by their names."""

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutwork.text import did_you_mean

if TYPE_CHECKING:
    from cutwork.data.feed import Feed, Feeding
    from cutwork.data.images import Images

# The module of each data set, imported when it is asked for, and the function there that loads it.
DATA_SETS = {
    "digits": ("cutwork.data.digits", "load_digits"),
    "fashion-mnist": ("cutwork.data.fashion_mnist", "load_fashion_mnist"),
    "cifar10": ("cutwork.data.cifar", "load_cifar10"),
    "cifar100": ("cutwork.data.cifar", "load_cifar100"),
}


def load_data(name: str, folder: str | Path | None = None, *, download: bool = False) -> "Images":
    """Return a data set by its name, from `folder` if its files lie elsewhere than they usually do.

    Nothing comes from the network unless `download` asks for it.

    >>> load_data("digits").test_images.shape
    torch.Size([360, 1, 8, 8])
    """
    if name not in DATA_SETS:
        near = did_you_mean(name, DATA_SETS)
        raise ValueError(f"unknown data set {name!r}{near}; write {', '.join(map(repr, DATA_SETS))}")
    module, function = DATA_SETS[name]
    load = getattr(import_module(module), function)
    asked: dict[str, Any] = ({} if folder is None else {"folder": folder}) | ({"download": True} if download else {})
    for option, value in asked.items():
        if option not in signature(load).parameters:
            raise ValueError(f"{option}={value!r}: the data set {name!r} has no use for it; leave it out")
    return load(**asked)


def make_feed(name: str, feeding: "Feeding") -> "Feed":
    """Return batches of a data set, by its name."""
    from cutwork.data.image_feed import ImageFeed

    return ImageFeed(load_data(name), feeding)
