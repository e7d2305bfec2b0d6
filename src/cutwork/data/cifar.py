"""The data sets CIFAR-10 and CIFAR-100: small photographs, read from the archives that their authors publish."""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from cutwork.data.array_pickle import read_arrays
from cutwork.data.cache import VARIABLE, cache_folder
from cutwork.data.download import download as fetch
from cutwork.data.download import sha256_of
from cutwork.data.images import Images

SHAPE = (3, 32, 32)
MAX_PIXEL = 255


@final
@dataclass(frozen=True)
class Archive:
    """One of the archives for Python: where it is published, what it must be, and what in it is read."""

    name: str
    url: str
    sha256: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: bytes

    @property
    def file_name(self) -> str:
        """The name of its file."""
        return self.url.rpartition("/")[2]


CIFAR10 = Archive(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    train=tuple(f"cifar-10-batches-py/data_batch_{number}" for number in range(1, 6)),
    test=("cifar-10-batches-py/test_batch",),
    labels=b"labels",
)
CIFAR100 = Archive(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    train=("cifar-100-python/train",),
    test=("cifar-100-python/test",),
    labels=b"fine_labels",
)


def load_cifar10(folder: str | Path | None = None, *, download: bool = False) -> Images:
    """Return 50000 training and 10000 test images, 3x32x32, of ten kinds of things.

    They are read from `cifar-10-python.tar.gz` in `folder`, by default the cache (`CUTWORK_DATA`). With `download`
    the file is fetched where it is missing; nothing is ever fetched without.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009,
    https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    return load_archive(CIFAR10, folder, download=download)


def load_cifar100(folder: str | Path | None = None, *, download: bool = False) -> Images:
    """Return 50000 training and 10000 test images, 3x32x32, of a hundred kinds of things; see `load_cifar10`."""
    return load_archive(CIFAR100, folder, download=download)


def load_archive(archive: Archive, folder: str | Path | None = None, *, download: bool = False) -> Images:
    """Return the images in one of the archives."""
    file = (cache_folder() if folder is None else Path(folder)) / archive.file_name
    if download:
        fetch(archive.url, file, archive.sha256)
    if not file.exists():
        raise FileNotFoundError(
            f"{archive.name} needs {file}, which is not there; fetch it by --download on the command line or "
            f"load_data({archive.name!r}, download=True), or get {archive.url} and put it there; the environment "
            f"variable {VARIABLE} names another folder"
        )
    if (found := sha256_of(file)) != archive.sha256:
        raise ValueError(
            f"{file} is damaged: its SHA-256 is {found}, not {archive.sha256}; delete it and download it again"
        )
    parts = _read_parts(archive, file)
    train_images, train_labels = _join([parts[name] for name in archive.train])
    test_images, test_labels = _join([parts[name] for name in archive.test])
    return Images(train_images, train_labels, test_images, test_labels)


def _read_parts(archive: Archive, file: Path) -> dict[str, tuple[np.ndarray, list[int]]]:
    wanted = {*archive.train, *archive.test}
    parts = {}
    # One pass from front to back: what is compressed can be read in no other order.
    with tarfile.open(file, "r|gz") as members:
        for member in members:
            if member.name in wanted and (content := members.extractfile(member)):
                part = read_arrays(content, f"{member.name} in {file}")
                parts[member.name] = part[b"data"], part[archive.labels]
    if missing := wanted - parts.keys():
        raise ValueError(f"{file} holds no {min(missing)}")
    return parts


def _join(parts: list[tuple[np.ndarray, list[int]]]) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.concatenate([data for data, _ in parts]))
    labels = torch.tensor([label for _, labels in parts for label in labels])
    return pixels.view(-1, *SHAPE).to(torch.float32).div_(MAX_PIXEL), labels
