import gzip

import numpy as np
import pytest

from cutwork.data.fashion_mnist import FILES


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
