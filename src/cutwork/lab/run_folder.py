"""The folder of a run: all that it takes to understand it, to go on with it, and to do it again."""

import csv
import json
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from cutwork.lab.training import Training
from cutwork.version import __version__

Record = Mapping[str, Any]


@final
class RunFolder:
    """What a run writes: its options, its curves, what it came to, and checkpoints.

    As part of a sweep also `output.txt`, and `error.txt` while it has failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.command = path / "command.txt"
        self.curves = path / "curves.jsonl"
        self.table = path / "curves.csv"
        self.summary = path / "summary.json"
        self.last = path / "last.safetensors"
        self.best = path / "best.safetensors"
        self.error = path / "error.txt"
        self.output = path / "output.txt"
        self.parts = path / "last.parts"
        self.budget = path / "budget.txt"

    @property
    def is_begun(self) -> bool:
        """Say whether a run was begun here."""
        return self.config.exists()

    @property
    def is_done(self) -> bool:
        """Say whether the run here has come to its end."""
        return self.summary.exists()

    def check_free(self, *, resume: bool) -> None:
        """Raise an error if another run would be written over, or if nothing can be written there."""
        if self.is_begun and not resume:
            raise FileExistsError(f"{self.path} holds a run already; go on with it by --resume, or name another folder")
        nearest = next(each for each in (self.path, *self.path.absolute().parents) if each.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(f"{nearest} is no folder, so nothing can be written to {self.path}; name another")
        if not os.access(nearest, os.W_OK):
            raise PermissionError(f"{nearest} cannot be written to; name another folder for the run")

    def begin(self, training: Training, why: str = "") -> None:
        """Write down what is to be run, before anything is, and why it is that where something was measured."""
        self.path.mkdir(parents=True, exist_ok=True)
        if why:
            self.budget.write_text(why + "\n")
        self.command.write_text(f"{shlex.join(['cutwork', *sys.argv[1:]])}\n# cutwork {__version__}\n")
        # The last of them, so that a folder that has it has all.
        _write(self.config, training.to_json() + "\n")

    def read_config(self) -> Training:
        """Return what was run here."""
        if not self.is_begun:
            raise FileNotFoundError(f"{self.path} holds no run: there is no {self.config.name} in it")
        try:
            return Training.from_json(self.config.read_text())
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.config}: {error}") from error

    def add(self, record: Record) -> None:
        """Write down how far the run is."""
        with _naming(self.curves), self.curves.open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def read_curves(self) -> list[dict[str, Any]]:
        """Return what was written down; a last line that was cut off is left out."""
        return list(_read_lines(self.curves)) if self.curves.exists() else []

    def forget_after(self, step: int) -> None:
        """Drop what was written down of steps that a resumed run takes again."""
        kept = [record for record in self.read_curves() if record["step"] <= step]
        _write(self.curves, "".join(json.dumps(record) + "\n" for record in kept))

    def end(self, summary: Record) -> None:
        """Write what the run came to, and its curves as a table."""
        records = self.read_curves()
        columns = list(dict.fromkeys(name for record in records for name in record))
        with _naming(self.table), self.table.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)
        _write(self.summary, json.dumps(summary, indent=2) + "\n")

    def fail(self, error: BaseException) -> None:
        """Write down what a run failed with: where it happened, and what it was in the last line."""
        self.path.mkdir(parents=True, exist_ok=True)
        told = " ".join(f"{type(error).__name__}: {error}".split())
        _write(self.error, "".join(traceback.format_tb(error.__traceback__)) + told + "\n")

    def read_error(self) -> str | None:
        """Return the last line of what the run failed with, if it did."""
        return self.error.read_text().splitlines()[-1] if self.error.exists() else None

    def read_summary(self) -> dict[str, Any]:
        """Return what the run came to."""
        try:
            return json.loads(self.summary.read_text())
        except ValueError as error:
            raise ValueError(f"{self.summary}: {error}") from error


def find_newest(folder: Path) -> RunFolder:
    """Return the run in a folder, or that of those in it which was written to last and has not ended."""
    if (own := RunFolder(folder)).is_begun:
        return own
    runs = [RunFolder(path.parent) for path in folder.glob("**/config.json")] if folder.is_dir() else []
    left = [run for run in runs if not run.is_done]
    if not left:
        raise FileNotFoundError(f"there is no run to go on with in {folder}" + (": all have ended" if runs else ""))
    return max(left, key=lambda run: max(each.stat().st_mtime_ns for each in run.path.iterdir()))


def _read_lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            # A process that was killed while it wrote leaves half a line, which is the last one.
            return


def _write(file: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all."""
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with _naming(file):
            fresh.write_text(text)
            fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Name the file in what the system says when it cannot be written, such as that the disk is full."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror or error}; what was saved before is as it was: make room, and go on by --resume"
        raise OSError(error.errno, what, str(file)) from error
