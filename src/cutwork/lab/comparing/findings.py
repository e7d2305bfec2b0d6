"""What runs came to: read from their folders, ranked and compared. Nothing heavy is imported here."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any, final

from cutwork.lab.run_folder import RunFolder
from cutwork.lab.sweeping.options import DENSE, is_dense, name_of, names_in, options_of
from cutwork.lab.sweeping.sweep import read_sweep
from cutwork.lab.training import Training, all_options

SEED = "seed"
# What a run must have in common with a dense one for its time to be compared with.
ALIKE = ("model", "data", "batch", "accumulate", "precision", "device", "context", "train_crop")
# Shares of the time of a dense run, at which the best run is looked for.
SHARES = (1.0, 0.9, 0.75, 0.5, 0.33, 0.25)


@final
@dataclass(frozen=True)
class Finding:
    """One run: what it was to be, how it went, and what it came to, if it has ended."""

    name: str
    place: RunFolder
    training: Training
    curves: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    error: str | None

    @property
    def best(self) -> float | None:
        """Return the share of the test data that was right when most were."""
        if self.summary is not None:
            return self.summary["best_accuracy"]
        return max((record["test_accuracy"] for record in self.curves if "test_accuracy" in record), default=None)

    @property
    def step_ms(self) -> float | None:
        """Return the milliseconds of a training step, as most of its lines have it."""
        times = [
            1000 * record["samples"] / record["step"] / record["samples_per_second"]
            for record in self.curves
            if record.get("samples_per_second")
        ]
        return median(times) if times else None

    @property
    def density(self) -> float:
        """Return the share of the weights of sparse layers that was kept last."""
        return self.curves[-1]["density"] if self.curves else 1.0

    @property
    def state(self) -> str:
        """Return how far the run is, in words."""
        if self.summary is not None:
            return "ended"
        if self.error is not None:
            return f"failed: {self.error}"
        return f"not ended: {self.curves[-1]['step']} steps" if self.curves else "not begun"


@final
@dataclass(frozen=True)
class Group:
    """Runs that are alike in what tells others apart, such as those that differ in their seeds alone."""

    label: str
    runs: tuple[Finding, ...]

    @property
    def mean(self) -> float:
        """Return the mean of their best accuracies."""
        return mean(self.bests)

    @property
    def is_dense(self) -> bool:
        """Say whether nothing is sparse in them."""
        return is_dense(self.runs[0].training)

    @property
    def spread(self) -> float | None:
        """Return the standard deviation of these, of two or more."""
        return stdev(self.bests) if len(self.bests) > 1 else None

    @property
    def bests(self) -> list[float]:
        """Return the best accuracy of each that was judged."""
        return [run.best for run in self.runs if run.best is not None]


def find_runs(paths: Iterable[Path]) -> list[Finding]:
    """Return the runs that lie in folders, the best first and what was never judged last.

    Those of a sweep count that failed before they were begun. A run is called by its place in the folder that was
    given, and by more of it where two would be called alike.
    """
    found: dict[Path, tuple[Training, tuple[str, ...]]] = {}
    for path in paths:
        if not (inside := _trainings_in(path)):
            raise FileNotFoundError(f"there is no run in {path}")
        for folder, training in inside.items():
            within = folder.relative_to(path).as_posix()
            names = (folder.name, folder.name) if within == "." else (within, f"{path.name}/{within}")
            found.setdefault(folder.resolve(), (training, (*names, str(folder.resolve()))))
    choices = zip(*(names for _, names in found.values()), strict=True)
    names = next(names for names in choices if len({*names}) == len(names))
    runs = [_read(name, folder, training) for name, (folder, (training, _)) in zip(names, found.items(), strict=True)]
    return sorted(runs, key=lambda run: (run.best is None, -(run.best or 0.0), run.name))


def differing(runs: Sequence[Finding]) -> dict[str, list[Any]]:
    """Return the options that are not the same in all runs, with their value in each; None where it does nothing.

    What is said of masks is compared among the runs that have some.
    """
    every = [options_of(run.training) for run in runs]
    counts = [{*names_in(run.training, [*own])} for run, own in zip(runs, every, strict=True)]
    found: dict[str, list[Any]] = {}
    for option in all_options():
        values = [own[option] for own, counted in zip(every, counts, strict=True) if option in counted]
        if any(value != values[0] for value in values):
            found[option] = [
                own[option] if option in counted else None for own, counted in zip(every, counts, strict=True)
            ]
    return found


def common(runs: Sequence[Finding]) -> dict[str, Any]:
    """Return the options that are the same in all runs for which they do something."""
    apart = differing(runs)
    # Of dense ones most say nothing of masks.
    first = next((run for run in runs if not is_dense(run.training)), runs[0])
    return {option: value for option, value in options_of(first.training).items() if option not in apart}


def naming(runs: Sequence[Finding]) -> list[str]:
    """Return the options that tell runs apart, but for the seed."""
    return [name for name in differing(runs) if name != SEED]


def group_runs(runs: Sequence[Finding], options: Sequence[str]) -> list[Group]:
    """Return the runs that were judged, those together that are alike in these options; the best group comes first."""
    groups: dict[str, list[Finding]] = {}
    for run in runs:
        if run.best is not None:
            groups.setdefault(label_of(run, options), []).append(run)
    return sorted((Group(label, tuple(own)) for label, own in groups.items()), key=lambda group: -group.mean)


def label_of(run: Finding, options: Sequence[str]) -> str:
    """Return what a legend calls a run that differs from others in these options."""
    told = name_of(run.training, options).replace(",", ", ").replace("pattern=", "")
    return told or (DENSE if is_dense(run.training) else "sparse")


def dense_ms(run: Finding, runs: Sequence[Finding], times: Mapping[str, float | None]) -> float | None:
    """Return the time of what is dense and else alike, of which there may be several."""
    own = options_of(run.training)
    alike = [
        time
        for other in runs
        if is_dense(other.training)
        and all(options_of(other.training)[option] == own[option] for option in ALIKE)
        and (time := times.get(other.name)) is not None
    ]
    return median(alike) if alike else None


def shares_of_dense(runs: Sequence[Finding], times: Mapping[str, float | None]) -> dict[str, float]:
    """Return the time of each run as a share of that of its dense one; nothing where either is not known."""
    shares: dict[str, float] = {}
    for run in runs:
        time, dense = times.get(run.name), dense_ms(run, runs, times)
        if time is not None and dense is not None:
            # Dense runs differ among each other by chance.
            shares[run.name] = 1.0 if is_dense(run.training) else time / dense
    return shares


def best_within(runs: Sequence[Finding], shares: Mapping[str, float]) -> dict[float, Finding | None]:
    """Return the best run that takes no more than a share of the dense time, for each of `SHARES`."""
    return {
        limit: next((run for run in runs if run.best is not None and shares.get(run.name, 2.0) <= limit), None)
        for limit in SHARES
    }


def _trainings_in(path: Path) -> dict[Path, Training]:
    found: dict[Path, Training] = {}
    for file in sorted(path.glob("**/sweep.json")):
        found |= {file.parent / name: training for name, training in read_sweep(file.parent).runs.items()}
    begun = {file.parent: RunFolder(file.parent).read_config() for file in sorted(path.glob("**/config.json"))}
    return found | begun


def _read(name: str, folder: Path, training: Training) -> Finding:
    place = RunFolder(folder)
    summary = place.read_summary() if place.is_done else None
    return Finding(name, place, training, place.read_curves(), summary, place.read_error())
