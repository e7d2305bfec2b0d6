"""What the commands share: exit codes, what counts as a wrong input, and progress on the screen."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, final

# What a wrong input may raise. Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, TypeError, OSError, ModuleNotFoundError)
# What a shell expects of a program that was stopped, and of one whose reader went away, as `head` does.
STOPPED, UNREAD = 130, 141
# A form that takes longer has a line of its own.
LONG_S = 2.0


@final
@dataclass(frozen=True)
class CommandGroup:
    """Several commands under one name, with what is said about them together."""

    title: str
    commands: Mapping[str, Callable[..., None]]


class Progress(Protocol):
    """Shows what is being measured, and how long it still takes."""

    def group(self, number: int, title: str, left: float) -> None:
        """Show that a group is begun, and how many seconds are left for all that are."""

    def form(self, name: str, seconds: float) -> None:
        """Show that a form of the group is looked at, for so many seconds, about."""


@final
class Lines:
    """Progress as plain lines: one a group, and one for each form that takes long."""

    def __init__(self, count: int) -> None:
        self.count = count

    def group(self, number: int, title: str, left: float) -> None:
        print(f"measuring {number + 1}/{self.count}: {title}; {left:.0f} s left", file=sys.stderr, flush=True)

    def form(self, name: str, seconds: float) -> None:
        if seconds >= LONG_S:
            print(f"  {name}, about {seconds:.0f} s", file=sys.stderr, flush=True)


@final
class Bar:
    """Progress as a bar of groups on a terminal."""

    def __init__(self, count: int, seconds: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self.bar = Progress(
            TextColumn("measuring"),
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn(f"of about {timedelta(seconds=math.ceil(seconds))}"),
            # What does not fit is cut from the title, not from the numbers.
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            # Results go to standard output, alone.
            console=Console(stderr=True),
            expand=True,
            # The bar is drawn by a thread: seldom, it takes the processor's time.
            refresh_per_second=1,
        )
        self.task = self.bar.add_task("", total=count)
        self.title = ""

    def group(self, number: int, title: str, left: float) -> None:
        self.title = title
        self.bar.update(self.task, completed=number, description=title, refresh=True)

    def form(self, name: str, seconds: float) -> None:
        self.bar.update(self.task, description=f"{name}: {self.title}", refresh=seconds >= LONG_S)


@contextmanager
def show_progress(count: int, seconds: float) -> Iterator[Progress]:
    """Show how far so many groups are: as a bar on a terminal, otherwise as lines."""
    from rich.console import Console

    if not Console(stderr=True).is_terminal:
        yield Lines(count)
        return
    shown = Bar(count, seconds)
    with shown.bar:
        yield shown
        shown.bar.update(shown.task, completed=count)


@contextmanager
def use_threads(count: int | None) -> Iterator[None]:
    """Let PyTorch compute with so many threads for a while."""
    import torch

    from cutwork.bench.choices import check_threads

    before = torch.get_num_threads()
    if count is not None:
        check_threads(count)
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
