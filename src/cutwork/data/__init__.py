"""Data sets, loaded by their names."""

from importlib import import_module
from typing import TYPE_CHECKING

from cutwork.text import did_you_mean

if TYPE_CHECKING:
    from cutwork.data.feed import Feed, Feeding
    from cutwork.data.images import Images

# The module of each data set, imported when it is asked for, and the function there that loads it.
DATA_SETS = {
    "digits": ("cutwork.data.digits", "load_digits"),
    "fashion-mnist": ("cutwork.data.fashion_mnist", "load_fashion_mnist"),
}


def load_data(name: str) -> "Images":
    """Return a data set by its name.

    >>> load_data("digits").test_images.shape
    torch.Size([360, 1, 8, 8])
    """
    if name not in DATA_SETS:
        near = did_you_mean(name, DATA_SETS)
        raise ValueError(f"unknown data set {name!r}{near}; write {', '.join(map(repr, DATA_SETS))}")
    module, function = DATA_SETS[name]
    return getattr(import_module(module), function)()


def make_feed(name: str, feeding: "Feeding") -> "Feed":
    """Return batches of a data set, by its name."""
    from cutwork.data.image_feed import ImageFeed

    return ImageFeed(load_data(name), feeding)
