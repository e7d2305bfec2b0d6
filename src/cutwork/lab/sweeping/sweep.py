"""A sweep: a run with each combination of some options' values, in folders whose names say what differs."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, final

from cutwork.lab.run_folder import RunFolder
from cutwork.lab.sweeping.options import is_dense, name_of, names_in, read_value
from cutwork.lab.training import Sparse, Training

# Bytes of the name of a folder.
LONGEST_NAME = 255


@final
@dataclass(frozen=True)
class Sweep:
    """Runs by their names, each in a folder of its own inside of one."""

    folder: Path
    runs: Mapping[str, Training]

    @property
    def file(self) -> Path:
        """Return the file that says what the sweep is."""
        return self.folder / "sweep.json"

    def place(self, name: str) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.folder / name)

    def left(self) -> list[str]:
        """Return the names of the runs that have not come to their end."""
        return [name for name in self.runs if not self.place(name).is_done]

    def check_free(self) -> None:
        """Raise FileExistsError if the folder holds anything else than this sweep, or some of its runs."""
        elsewhere = "name another folder by --output"
        if RunFolder(self.folder).is_begun:
            raise FileExistsError(f"{self.folder} is the folder of a run; {elsewhere}")
        if not self.file.exists():
            if begun := [name for name in self.runs if self.place(name).is_begun]:
                raise FileExistsError(f"{self.folder} holds a run {begun[0]} that is of no sweep; {elsewhere}")
            return
        for name, training in read_sweep(self.folder).runs.items():
            if self.runs.get(name) != training:
                why = "has other options" if name in self.runs else "is not among these"
                raise FileExistsError(f"{self.folder} holds another sweep, whose run {name} {why}; {elsewhere}")

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Write down what is to be run, and let no other program run it meanwhile."""
        # Windows has none.
        import fcntl

        self.check_free()
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".held").open("w") as stream:
            try:
                # Whoever holds it lets go of it by ending, in whatever way.
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FileExistsError(f"another program runs the sweep in {self.folder} now; wait for it") from error
            runs = {name: asdict(training) for name, training in self.runs.items()}
            fresh = self.file.with_suffix(".new")
            fresh.write_text(json.dumps(runs, indent=1) + "\n")
            fresh.replace(self.file)
            yield


def read_sweep(folder: Path) -> Sweep:
    """Return the sweep that was begun in a folder."""
    file = Sweep(folder, {}).file
    try:
        given = json.loads(file.read_text())
        return Sweep(folder, {name: Training.from_json(json.dumps(one)) for name, one in given.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: {error}") from error


def spread(base: Training, over: Mapping[str, Sequence[Any]]) -> dict[str, Training]:
    """Return a run for each combination of values, by a name that says how it differs from the others.

    Where nothing is sparse, what else is said of masks makes no difference, so of such runs there is one.

    >>> [*spread(Training(), {"pattern": ["dense", "block:16"], "density": [0.2, 0.1]})]
    ['pattern=dense', 'pattern=block:16,density=0.2', 'pattern=block:16,density=0.1']
    """
    differing = [option for option, values in over.items() if len({*values}) > 1]
    if not differing:
        raise ValueError("no option has two values; give it some, as in --over seed=0,1,2, or use 'cutwork train'")
    runs: dict[str, Training] = {}
    for values in product(*over.values()):
        training = base.having(**dict(zip(over, values, strict=True)))
        if is_dense(training):
            training = replace(training, sparse=Sparse())
        name = name_of(training, differing)
        if len(name.encode()) > LONGEST_NAME:
            raise ValueError(f"no folder can be called {name}: it is too long; say less by --over, and more by options")
        if runs.setdefault(name, training) != training:
            raise ValueError(f"two runs would be called {name}; give values that differ in more than / and spaces")
    for option in differing:
        if not any(names_in(training, [option]) for training in runs.values()):
            raise ValueError(f"{option} makes no difference where nothing is sparse; give a pattern too")
    return runs


def read_over(text: str) -> tuple[str, list[Any]]:
    """Read the values of an option: divided by commas outside of brackets, or by | where there is one.

    >>> read_over("density=0.5,0.1"), read_over("model=mlp:hidden=(8,8),resnet8"), read_over("augment=flip|crop,flip")
    (('density', [0.5, 0.1]), ('model', ['mlp:hidden=(8,8)', 'resnet8']), ('augment', ['flip', 'crop,flip']))
    """
    option, is_given, values = text.partition("=")
    option = option.strip().replace("-", "_")
    if not is_given:
        raise ValueError(f"--over {text}: write an option and its values, as in density=0.5,0.2")
    divided = values.split("|") if "|" in values else re.split(r",(?![^()]*\))", values)
    return option, [read_value(option, value.strip()) for value in divided]
