"""Which image files a folder holds, and of which class each is."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}
# What Tiny-ImageNet has instead of a folder for each class of test images.
ANNOTATIONS = "val_annotations.txt"
LAYOUT = "it must hold train/ and val/, and these a folder of images for each class"


@final
@dataclass(frozen=True)
class ImageFiles:
    """Files with the numbers of their classes.

    The names are one array of bytes and no list: worker processes share its memory, but would copy objects of Python
    by counting who refers to them.
    """

    names: np.ndarray
    labels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def open(self, number: int) -> Any:
        """Return one of the images as Pillow has it, in three colours."""
        from PIL import Image

        name = os.fsdecode(self.names[number])
        try:
            with Image.open(name) as image:
                return image.convert("RGB")
        except OSError as error:
            raise ValueError(f"{name} is no image that Pillow can read, or is damaged: {error}") from error


@final
@dataclass(frozen=True)
class ImageFolder:
    """The images of a folder, to train with and to be judged by, and the names of the classes in their order."""

    classes: tuple[str, ...]
    train: ImageFiles
    test: ImageFiles


def list_images(folder: Path) -> ImageFolder:
    """Return what lies in `train/` and `val/` of a folder, in an order that follows from the names alone."""
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder} has no folder {part}/; {LAYOUT}")
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    if not classes:
        raise ValueError(f"{folder / 'train'} holds no folder; {LAYOUT}")
    numbers = {name: number for number, name in enumerate(classes)}
    annotations = folder / "val" / ANNOTATIONS
    test = _annotated(annotations, numbers) if annotations.is_file() else _by_class(folder / "val", numbers)
    return ImageFolder(tuple(classes), _gather(_by_class(folder / "train", numbers)), _gather(test))


def _by_class(folder: Path, numbers: dict[str, int]) -> Iterator[tuple[Path, int]]:
    found = sorted(path for path in folder.iterdir() if path.is_dir())
    if not found:
        raise ValueError(f"{folder} holds no folder; {LAYOUT}")
    for place in found:
        if place.name not in numbers:
            raise ValueError(f"{place}: there is no class of this name in train/")
        # Tiny-ImageNet has its training images one folder further down.
        files = [Path(root) / name for root, _, names in os.walk(place) for name in names if _is_image(name)]
        if not files:
            raise ValueError(f"{place} holds no image; known are the endings {', '.join(sorted(SUFFIXES))}")
        yield from ((file, numbers[place.name]) for file in sorted(files))


def _annotated(annotations: Path, numbers: dict[str, int]) -> Iterator[tuple[Path, int]]:
    for line in annotations.read_text().splitlines():
        name, class_name, *_ = [*line.split("\t"), ""]
        file = annotations.parent / "images" / name
        if class_name not in numbers or not file.is_file():
            raise ValueError(f"{annotations} says {line!r}, but that is no image in images/ of a class in train/")
        yield file, numbers[class_name]


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - a million times


def _gather(found: Iterator[tuple[Path, int]]) -> ImageFiles:
    names, labels = zip(*((os.fsencode(file), label) for file, label in found), strict=True)
    return ImageFiles(np.array(names), torch.tensor(labels))
