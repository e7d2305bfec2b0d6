import gzip

import pytest
import torch

from cutwork.data.fashion_mnist import FILES, FOLDER, load_fashion_mnist


def test_pixels_and_labels_are_those_of_the_files(fashion_files):
    data = load_fashion_mnist(fashion_files)
    assert data.train_images.shape == data.test_images.shape == (6, 1, 28, 28)
    assert torch.equal(data.train_images.flatten()[:256] * 255, torch.arange(256.0))
    assert data.train_labels.tolist() == [1, 2, 3, 4, 5, 6]
    assert data.test_labels.tolist() == [3, 4, 5, 6, 7, 8]


def test_a_missing_file_is_named_with_how_to_get_it(fashion_files):
    (fashion_files / FILES["test_labels"]).unlink()
    with pytest.raises(FileNotFoundError, match=r"needs t10k-labels.*install the Debian package dataset-fashion-mnist"):
        load_fashion_mnist(fashion_files)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no gzip", "is damaged"),
        (gzip.compress(b"\0\0\x08\1\0\0\0\6abcdef")[:-6], "is damaged"),
        (gzip.compress(b"hello"), "is no IDX file of bytes"),
        (gzip.compress(b"\0\0\x08\1\0\0\0\7abcdef"), r"its head says \[7\], but 6 bytes follow"),
        (gzip.compress(b"\0\0\x08\1\0\0\0\5abcde"), r"images of shape \[6, 28, 28\] and labels of shape \[5\]"),
    ],
    # The bytes hold the time.
    ids=["no gzip", "cut off", "no idx", "too short", "too few"],
)
def test_a_damaged_file_is_refused(content, reason, fashion_files):
    (fashion_files / FILES["train_labels"]).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        load_fashion_mnist(fashion_files)


@pytest.mark.skipif(
    not FOLDER.exists(), reason="31 MB that cutwork does not ship; install the package dataset-fashion-mnist"
)
def test_the_real_files_hold_as_many_of_each_kind():
    data = load_fashion_mnist()
    assert data.train_images.shape == (60000, 1, 28, 28)
    assert data.train_labels.bincount().tolist() == [6000] * 10
    assert data.test_labels.bincount().tolist() == [1000] * 10
