"""Batches of text, byte by byte: windows of it, and what comes next at each place."""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from cutwork.data.feed import Batch, Feed, Feeding, chance_of, judging_order, refuse, steps_in

NUM_BYTES = 256
CONTEXT = 128
TEST_SHARE = 10
# Folders with packages of others, with tests, and with what the machine wrote; and files that differ between machines.
LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}
OF_THE_MACHINE = ("_sysconfigdata", "sitecustomize", "usercustomize", "python-config")


def make_standard_library(feeding: Feeding) -> "TextFeed":
    """Return batches of a text that every machine has, `standard_library()`."""
    return TextFeed("the sources of Python's standard library", standard_library(), feeding)


def make_text_file(path: str, feeding: Feeding) -> "TextFeed":
    """Return batches of the text in a file."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; write text: and the path of one")
    return TextFeed(str(file), file.read_bytes(), feeding)


def standard_library() -> bytes:
    """Return the sources of the standard library of the Python that is running, one after the other by their names.

    They are all `*.py` below `sysconfig.get_path("stdlib")` but for its tests, packages that were installed, and files
    that describe the machine: about 10 MB. They change with the version of Python, so compare runs by the checksum
    in the description of the feed.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = [path.relative_to(folder) for path in folder.rglob("*.py")]
    kept = [path for path in files if not LEFT_OUT & {*path.parts} and not path.name.startswith(OF_THE_MACHINE)]
    if not kept:
        raise FileNotFoundError(f"the sources of Python are not in {folder}; name a file of your own, text:FILE")
    return b"\n".join((folder / path).read_bytes() for path in sorted(kept, key=lambda path: path.as_posix()))


@final
class TextFeed(Feed):
    """A text whose last tenth is for testing. Batches are windows `[B, T]`: to train with, random ones.

    >>> feed = TextFeed("abc", bytes(range(200)), Feeding(batch=2, context=8))
    >>> inputs, labels = next(feed.testing())
    >>> inputs[0].tolist(), labels[0].tolist()
    ([180, 181, 182, 183, 184, 185, 186, 187], [181, 182, 183, 184, 185, 186, 187, 188])
    """

    def __init__(self, name: str, text: bytes, feeding: Feeding) -> None:
        options = ("augment", "repeats", "train_crop", "test_crop", "test_resize", "interpolation")
        refuse(feeding, options, "text")
        self.feeding, self.context = feeding, feeding.context or CONTEXT
        num_test = len(text) // TEST_SHARE
        if num_test <= self.context:
            raise ValueError(
                f"{name} has {len(text)} bytes; the last tenth is for testing, and must hold more than the "
                f"{self.context} bytes of context"
            )
        everything = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.train, self.test = everything[:-num_test], everything[-num_test:]
        self.num_classes = NUM_BYTES
        self.steps_of_epoch = steps_in(self._windows_in(self.train), feeding)
        self.example = self._cut(self.test, torch.tensor([0]))[0]
        digest = hashlib.sha256(text).hexdigest()[:12]
        self.description = f"{name}: {len(text)} bytes, SHA-256 {digest}..., in windows of {self.context}"

    def training(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, beginning with one of its steps, as if those before it had been yielded."""
        for step in range(start, self.steps_of_epoch):
            chance = chance_of(self.feeding.seed, epoch, step, self.feeding.rank)
            begins = torch.randint(len(self.train) - self.context, (self.feeding.batch,), generator=chance)
            yield self._cut(self.train, begins)

    def testing(self) -> Iterator[Batch]:
        """Yield all test windows once, shared out between the processes."""
        for chosen in judging_order(self._windows_in(self.test), self.feeding):
            yield self._cut(self.test, chosen * self.context)

    def _windows_in(self, text: Tensor) -> int:
        # Behind the last one a byte must follow.
        return (len(text) - 1) // self.context

    def _cut(self, text: Tensor, begins: Tensor) -> Batch:
        windows = text[begins[:, None] + torch.arange(self.context + 1)].to(torch.int64)
        return windows[:, :-1], windows[:, 1:]
