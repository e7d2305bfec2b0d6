"""CIFAR is read from its published archives, and what is wrong with one is said."""

import pickle
from pathlib import Path

import pytest
import torch

from cutwork.data import cifar, load_data
from cutwork.data.cifar import CIFAR10, CIFAR100

from .archives import cifar_part, put


def test_pixels_and_labels_are_those_of_the_archive(cifar_files):
    data = load_data("cifar10")
    assert data.train_images.shape == (15, 3, 32, 32)
    assert data.test_images.shape == (3, 3, 32, 32)
    first = [10 * part + image for part in range(5) for image in range(3)]
    assert data.train_images[:, 0, 0, 0].mul(255).round().tolist() == first
    # Red, green and blue lie one behind the other, each row by row.
    assert torch.equal(data.train_images[:, 2, 31, 31], torch.ones(15))
    assert data.train_labels.tolist() == [(part + image) % 10 for part in range(5) for image in range(3)]
    assert data.test_images[:, 0, 0, 0].mul(255).round().tolist() == [50, 51, 52]
    assert data.test_labels.tolist() == [5, 6, 7]


def test_the_hundred_are_the_fine_labels(cifar_files):
    data = load_data("cifar100")
    assert data.train_labels.tolist() == [0, 1, 2]
    assert data.test_labels.tolist() == [1, 2, 3]


def test_another_folder_may_be_given(cifar_files, monkeypatch):
    monkeypatch.setenv("CUTWORK_DATA", "/nowhere")
    assert len(load_data("cifar10", folder=cifar_files).train_images) == 15


def test_a_missing_archive_says_how_to_get_it(tmp_path):
    ways = r"--download on the command line or load_data\('cifar10', download=True\)"
    message = rf"cifar10 needs .*cifar-10-python.tar.gz, which is not there; fetch it by {ways}"
    with pytest.raises(FileNotFoundError, match=message):
        load_data("cifar10", folder=tmp_path)


def test_nothing_is_downloaded_unless_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(cifar, "fetch", lambda *arguments: asked.append(arguments))
    for download in (False, True):
        with pytest.raises(FileNotFoundError):
            load_data("cifar100", folder=tmp_path, download=download)
    assert asked == [(CIFAR100.url, tmp_path / "cifar-100-python.tar.gz", CIFAR100.sha256)]


def test_a_damaged_archive_is_named(cifar_files):
    file = cifar_files / CIFAR10.file_name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is damaged: its SHA-256 is"):
        load_data("cifar10")


def test_an_archive_that_lacks_a_part_is_named(tmp_path, monkeypatch):
    put(CIFAR100, {CIFAR100.train[0]: cifar_part(0, b"fine_labels", 100)}, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"cifar-100-python.tar.gz holds no cifar-100-python/test"):
        load_data("cifar100", folder=tmp_path)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("evil"),)


def test_a_pickle_that_names_anything_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = dict.fromkeys((*CIFAR100.train, *CIFAR100.test), pickle.dumps(Evil()))
    put(CIFAR100, members, tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"cifar-100-python/train in .* asks for .*; only arrays are read"):
        load_data("cifar100", folder=tmp_path)
    assert not Path("evil").exists()
