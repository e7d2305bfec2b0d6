"""What was measured: rows, the machine they come from, and their forms as JSON, CSV and a table."""

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import final

from cutwork.speed.forms import DENSE
from cutwork.speed.machine import Machine
from cutwork.speed.timing import STEADY_SPREAD
from cutwork.text import in_columns

# The form and precision that everything is compared with besides the fastest dense form.
BASE = (DENSE, "fp32")
# All other forms are sparse.
DENSE_FORMS = (DENSE, "compiled", "onnx")
# What rows of random layers measure.
RANDOM = "random"
WIDTH = 100
# The quartiles of fewer say nothing.
FEW_ROUNDS = 3


@final
@dataclass(frozen=True)
class Measurement:
    """One form of one piece of work: what it is, whether it computes the right thing, and how fast.

    `tokens` is the number of rows that a linear layer multiplies, or the batch of a convolution or model. A form whose
    results differ has no times and no ratios. `gbytes_per_s` counts what must move at the least: inputs, outputs, kept
    weights and their index, once each. `ratio` is to the fastest dense form measured beside it, `ratio_to_fp32` to
    PyTorch's dense layer in fp32 as it is; `ideal` is one over the density.
    """

    what: str
    shape: str
    tokens: int
    work: str
    pattern: str
    density: float
    form: str
    precision: str
    equal: bool
    error: float | None
    median_ms: float | None = None
    spread: float | None = None
    rounds: int = 0
    ratio: float | None = None
    ratio_to_fp32: float | None = None
    ideal: float = 1.0
    gflops_per_s: float | None = None
    gbytes_per_s: float | None = None

    @classmethod
    def dense(cls, what: str, shape: str, tokens: int, work: str, precision: str = "fp32") -> "Measurement":
        """Return what is known of PyTorch's dense form before it was measured."""
        return cls(what, shape, tokens, work, DENSE, 1.0, DENSE, precision, equal=False, error=None)

    @property
    def is_base(self) -> bool:
        """Say whether this is PyTorch's dense layer in fp32 as it is."""
        return (self.form, self.precision) == BASE

    @property
    def is_steady(self) -> bool:
        """Say whether its runs agree well enough to believe differences of a tenth."""
        return not self.is_rough and (self.spread or 0.0) <= STEADY_SPREAD

    @property
    def is_rough(self) -> bool:
        """Say whether it was timed too seldom to know how far its runs lie apart."""
        return 0 < self.rounds < FEW_ROUNDS


@final
@dataclass(frozen=True)
class Results:
    """Rows from one run, and what there is to say about it: forms left out, and why, and an unsteady machine."""

    machine: Machine
    rows: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()

    @property
    def all_are_equal(self) -> bool:
        """Say whether every form computed the right thing."""
        return all(row.equal for row in self.rows)

    def __str__(self) -> str:
        """Write the results as tables that are at most 100 columns wide."""
        return "\n\n".join([str(self.machine), *table(self.rows), *(["\n".join(self.notes)] if self.notes else [])])

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """Read what `to_json` has written."""
        data = json.loads(text)
        return cls(Machine(**data["machine"]), tuple(Measurement(**row) for row in data["rows"]), tuple(data["notes"]))

    def to_csv(self) -> str:
        """Return the rows as CSV with a line of names; what was not measured is empty."""
        file = io.StringIO()
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Measurement)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return file.getvalue()

    def write(self, folder: Path) -> list[Path]:
        """Write results.json and results.csv, and return them."""
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / "results.json", folder / "results.csv"]
        files[0].write_text(self.to_json() + "\n")
        files[1].write_text(self.to_csv())
        return files


def table(rows: Iterable[Measurement]) -> list[str]:
    """Write rows as one table for each piece of work, each as wide as it must be."""
    return [_piece(title, list(group)) for title, group in groupby(rows, key=title_of)]


def title_of(row: Measurement) -> str:
    """Return what a row has in common with those it is compared with."""
    unit = "batch" if row.what in ("conv", "model", "train") else "tokens"
    return f"{row.what} {row.shape}, {row.work}, {unit} {row.tokens}"


def pair_with_dense(rows: Iterable[Measurement]) -> Iterator[tuple[Measurement, list[Measurement]]]:
    """Pair each row with the dense ones it took turns with; they come first, PyTorch's own at the very beginning."""
    dense: list[Measurement] = []
    for row in rows:
        dense = [] if row.is_base else dense
        dense += [row] if row.form in DENSE_FORMS else []
        yield row, dense


def find_fastest(rows: Iterable[Measurement]) -> Measurement | None:
    """Return the fastest of the rows that were timed, if any was."""
    return min((row for row in rows if row.median_ms), key=lambda row: row.median_ms or 0.0, default=None)


def find_unsteady_bases(rows: Iterable[Measurement]) -> list[Measurement]:
    """Return the dense rows that ratios rest on though their runs lie far apart: the fastest, and PyTorch's own."""
    pairs = list(pair_with_dense(rows))
    return [row for row, dense in pairs if not row.is_steady and (row.is_base or row is find_fastest(dense))]


HEAD = ("pattern", "density", "form", "precision", "median", "x dense", "x fp32", "ideal", "GF/s", "GB/s", "error")
FLUSH = "<><<>>>>>>>"


def cells(row: Measurement) -> tuple[str, ...]:
    """Return a row as texts, in the order of `HEAD`."""
    start = (row.pattern, f"{row.density:.3g}", row.form, row.precision)
    if not row.equal:
        return *start, "differs", "", "", "", "", "", _error(row)
    return (
        *start,
        time_of(row),
        _number(row.ratio),
        _number(row.ratio_to_fp32),
        _number(row.ideal),
        "" if row.gflops_per_s is None else f"{row.gflops_per_s:.0f}",
        "" if row.gbytes_per_s is None else f"{row.gbytes_per_s:.1f}",
        _error(row),
    )


def _piece(title: str, rows: Sequence[Measurement]) -> str:
    return "\n".join([title, *in_columns([HEAD, *(cells(row) for row in rows)], FLUSH, gap=" ")])


def time_of(row: Measurement) -> str:
    """Return the time of a row as people read it, empty if it was not timed.

    With `~` its runs lie far apart, with `?` there are too few to know.
    """
    if row.median_ms is None:
        return ""
    written = f"{1000 * row.median_ms:.3g} us" if row.median_ms < 1 else f"{row.median_ms:.4g} ms"
    return written + ("?" if row.is_rough else "" if row.is_steady else "~")


def _number(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _error(row: Measurement) -> str:
    return "not finite" if row.error is None else f"{row.error:.0e}"
