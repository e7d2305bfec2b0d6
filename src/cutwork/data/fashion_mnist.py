"""The data set Fashion-MNIST: small grey pictures of clothes, read from the files that its authors publish."""

import gzip
import math
from pathlib import Path

import torch
from torch import Tensor

from cutwork.data.images import Images

# Where the Debian package puts the files.
FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}
MAX_PIXEL = 255
HOW_TO_GET = (
    "install the Debian package dataset-fashion-mnist, or download the four files from "
    "https://github.com/zalandoresearch/fashion-mnist and call load_fashion_mnist(folder)"
)


def load_fashion_mnist(folder: str | Path | None = None) -> Images:
    """Return 60000 training and 10000 test images, 28x28, of ten kinds of clothes, read from their files in `folder`.

    Without a folder the files are those of the Debian package `dataset-fashion-mnist`.

    Source: Xiao, Rasul and Vollgraf, Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms, 2017, https://github.com/zalandoresearch/fashion-mnist, licensed under MIT.
    """
    place = FOLDER if folder is None else Path(folder)
    if missing := [name for name in FILES.values() if not (place / name).is_file()]:
        raise FileNotFoundError(f"Fashion-MNIST needs {missing[0]} in {place}, where it is not; {HOW_TO_GET}")
    arrays = {part: read_idx(place / name) for part, name in FILES.items()}
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{place} holds {part} images of shape {list(images.shape)} and labels of shape {list(labels.shape)}; "
                f"they must be [N, height, width] and [N]; {HOW_TO_GET}"
            )
    return Images(
        train_images=_as_images(arrays["train_images"]),
        train_labels=arrays["train_labels"].to(torch.int64),
        test_images=_as_images(arrays["test_images"]),
        test_labels=arrays["test_labels"].to(torch.int64),
    )


def read_idx(file: Path) -> Tensor:
    """Return the bytes in a compressed file of the format IDX, in the shape that its head gives.

    The head is two zero bytes, 8 for unsigned bytes, the number of dimensions, and the size of each in four bytes.
    """
    try:
        content = gzip.decompress(file.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{file} is damaged, {error}; {HOW_TO_GET}") from error
    if content[:3] != b"\0\0\x08" or len(content) < 4:
        raise ValueError(f"{file} is no IDX file of bytes: it begins with {content[:4]!r}; {HOW_TO_GET}")
    begin = 4 + 4 * content[3]
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, begin, 4)]
    if len(content) != begin + math.prod(shape):
        raise ValueError(
            f"{file} is damaged: its head says {shape}, but {len(content) - begin} bytes follow; {HOW_TO_GET}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[begin:].view(shape)


def _as_images(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32).div_(MAX_PIXEL).unsqueeze(1)
