import gzip

import numpy as np
import pytest
from PIL import Image

from cutwork.data.cifar import CIFAR10, CIFAR100
from cutwork.data.fashion_mnist import FILES

from .archives import cifar_part, put


def write_idx(file, array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    file.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture
def fashion_files(tmp_path):
    """Return a folder with four small files in the format of Fashion-MNIST."""
    for number, (part, name) in enumerate(FILES.items()):
        shape = (6, 28, 28) if part.endswith("images") else (6,)
        pixels = np.arange(np.prod(shape)).reshape(shape) % 256 if len(shape) == 3 else np.arange(6) + number
        write_idx(tmp_path / name, pixels.astype(np.uint8))
    return tmp_path


@pytest.fixture
def cifar_files(tmp_path, monkeypatch):
    """Return a folder with both archives, small ones."""
    monkeypatch.setenv("CUTWORK_DATA", str(tmp_path))
    for archive, num_classes in ((CIFAR10, 10), (CIFAR100, 100)):
        names = [*archive.train, *archive.test]
        parts = {name: cifar_part(n, archive.labels, num_classes) for n, name in enumerate(names)}
        put(archive, {"cifar/readme.html": b"hello", **parts}, tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def image_files(tmp_path):
    """Return a folder with four training and two test images of each of three classes, none like another."""
    chance = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for name in ("dog", "bird", "cat"):
            place = tmp_path / "images" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(0, 256, (18 + number, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return tmp_path / "images"
