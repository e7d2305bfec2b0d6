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


# Where batches are not just cut out of images in memory: the function that makes them, which gets what follows a colon.
FEEDS = {
    "imagenet": ("cutwork.data.folder_feed", "make_imagenet"),
    "tiny-imagenet": ("cutwork.data.folder_feed", "make_tiny_imagenet"),
    "folder:": ("cutwork.data.folder_feed", "make_folder"),
    "fake:": ("cutwork.data.fake_feed", "make_fake"),
    "text": ("cutwork.data.text_feed", "make_standard_library"),
    "text:": ("cutwork.data.text_feed", "make_text_file"),
}


def load_data(name: str, folder: str | Path | None = None, *, download: bool = False) -> "Images":
    """Return a data set by its name, from `folder` if its files lie elsewhere than they usually do.

    Nothing comes from the network unless `download` asks for it.

    >>> load_data("digits").test_images.shape
    torch.Size([360, 1, 8, 8])
    """
    if name not in DATA_SETS:
        raise _unknown(name, DATA_SETS)
    return _call(DATA_SETS[name], name, (), folder=folder, download=download)


def make_feed(name: str, feeding: "Feeding", folder: str | Path | None = None, *, download: bool = False) -> "Feed":
    """Return batches of a data set, by its name.

    >>> from cutwork.data.feed import Feeding
    >>> make_feed("fake:3x224x224", Feeding(batch=8)).example.shape
    torch.Size([1, 3, 224, 224])
    """
    if download and feeding.world > 1:
        raise ValueError(
            f"several processes would download the same file; fetch it first in one, by load_data({name!r}, "
            "download=True), and leave download out"
        )
    kind, colon, detail = name.partition(":")
    if kind + colon in FEEDS:
        return _call(
            FEEDS[kind + colon], name, (detail, feeding) if colon else (feeding,), folder=folder, download=download
        )
    if name not in DATA_SETS:
        raise _unknown(name, DATA_SETS | FEEDS)
    from cutwork.data.image_feed import ImageFeed

    return ImageFeed(name, load_data(name, folder, download=download), feeding)


def _unknown(name: str, known: dict[str, tuple[str, str]]) -> ValueError:
    return ValueError(f"unknown data set {name!r}{did_you_mean(name, known)}; write {', '.join(map(repr, known))}")


def _call(
    place: tuple[str, str], name: str, given: tuple[Any, ...], *, folder: str | Path | None, download: bool
) -> Any:
    module, function = place
    make = getattr(import_module(module), function)
    asked: dict[str, Any] = ({} if folder is None else {"folder": folder}) | ({"download": True} if download else {})
    for option, value in asked.items():
        if option not in signature(make).parameters:
            raise ValueError(f"{option}={value!r}: the data set {name!r} has no use for it; leave it out")
    return make(*given, **asked)
