"""Write RESULTS.md and the table in README.md from the results.json of each piece, so that nobody types a number.

python benchmarks/render.py
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from cutwork.benchmark.comparison import DENSE_FORMS
from cutwork.benchmark.results import HEAD, Results, Row, cells, title_of

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
# The pieces of which the README shows something, and the densities that it shows.
SHOWN = (
    "linear-197",
    "linear-1576",
    "linear-step",
    "conv",
    "train-layer",
    "vit-b16",
    "vit-b16-train",
    "resnet50",
    "llama-small",
)
DENSITIES = (0.5, 0.2, 0.1, 0.05)
OWN = ("tile", "packed", "fused")
# Columns that are read from the left.
WORDS = ("layer", "pattern", "density", "form", "precision")
# Of more tables than this nobody reads one.
MOST_TABLES = 50
NOTHING = "Nothing was measured for this version yet: `make bench` does it, `benchmarks/RESULTS.md` will have it."


def pieces() -> dict[str, Results]:
    """Return what was measured, by the name of the piece."""
    return {file.parent.name: Results.from_json(file.read_text()) for file in sorted(HERE.glob("*/results.json"))}


def results_page(measured: dict[str, Results]) -> str:
    """Return RESULTS.md."""
    head = (
        "# Results\n\nWritten by `benchmarks/render.py` from the `results.json` of each piece. "
        "`docs/benchmarks.md` says what the columns mean.\n"
    )
    return "\n".join([head, *([NOTHING + "\n"] if not measured else []), *map(_piece, measured, measured.values())])


def readme_table(measured: dict[str, Results]) -> str:
    """Return the table of the README: times as fast as dense, from the slowest to the fastest tile measured."""
    shown = {name: measured[name] for name in SHOWN if name in measured}
    lines = [line for results in shown.values() for line in _summary(results)]
    if not lines:
        return NOTHING
    machine = next(iter(shown.values())).machine
    return "\n".join(
        [
            f"| weights kept | compared with | {' | '.join(f'{density:.0%}' for density in DENSITIES)} |",
            f"|---|---|{'---|' * len(DENSITIES)}",
            *lines,
            "",
            f"Times as fast as dense, from the slowest to the fastest tile shape, on {machine.cpu} with "
            f"{machine.threads} threads, torch {machine.torch}. All that was measured: `benchmarks/RESULTS.md`.",
            *_peaks(shown.values()),
        ]
    )


def with_table(page: str, table: str) -> str:
    """Return the README with the table between its marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def write_pages() -> None:
    """Write both pages."""
    measured = pieces()
    (HERE / "RESULTS.md").write_text(results_page(measured))
    README.write_text(with_table(README.read_text(), readme_table(measured)))


def _piece(name: str, results: Results) -> str:
    machine = "  \n".join(str(results.machine).splitlines()[:2])
    picture = f"![crossover curves]({name}/picture.svg)\n" if (HERE / name / "picture.svg").exists() else ""
    lines = [f"## {name}\n", machine, "", f"    {results.machine.command}\n", picture]
    groups = {title: list(rows) for title, rows in groupby(results.rows, key=title_of)}
    if len(groups) > MOST_TABLES:
        lines += [_by_gain(groups), ""]
    else:
        for title, rows in groups.items():
            lines += [f"**{title}**\n", _markdown(HEAD, [cells(row) for row in rows]), ""]
    return "\n".join([*lines, *(f"- {note}" for note in results.notes), ""])


def _by_gain(groups: dict[str, list[Row]]) -> str:
    """Return the sparse rows of all groups as one table, what gains least first."""
    rows = [(title, row) for title, rows in groups.items() for row in rows if row.form not in DENSE_FORMS]
    rows.sort(key=lambda pair: pair[1].ratio or 0.0)
    return _markdown(("layer", *HEAD), [(title, *cells(row)) for title, row in rows])


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    sides = "|".join("---" if name in WORDS else "---:" for name in head)
    return "\n".join([f"| {' | '.join(head)} |", f"|{sides}|", *(f"| {' | '.join(line)} |" for line in lines)])


def _summary(results: Results) -> list[str]:
    lines = []
    for title, group in groupby(results.rows, key=title_of):
        rows = [row for row in group if row.form in OWN]
        found = {
            against: [_range([getattr(row, ratio) for row in rows if _is_about(row, density)]) for density in DENSITIES]
            for against, ratio in (("the fastest dense form", "ratio"), ("PyTorch, dense fp32", "ratio_to_fp32"))
        }
        # Where PyTorch's own is the fastest, or as good as, one line says both.
        once = {" | ".join(ranges): against for against, ranges in reversed(found.items()) if any(ranges)}
        lines += [f"| {title} | {against} | {ranges} |" for ranges, against in reversed(once.items())]
    return lines


def _peaks(measured: Iterable[Results]) -> list[str]:
    """Say why some ratios pass one over the density, if they do."""
    rows = [row for results in measured for row in results.rows if row.what == "linear" and row.gflops_per_s]
    dense = max((row.gflops_per_s or 0.0 for row in rows if row.is_base), default=0.0)
    tiles = max((row.gflops_per_s or 0.0 for row in rows if row.form in OWN), default=0.0)
    if tiles <= dense:
        return []
    return [
        "Ratios pass one over the share kept because PyTorch's dense fp32 product of linear layers reaches "
        f"{dense:.0f} GF/s on this processor, and tile kernels up to {tiles:.0f}."
    ]


def _is_about(row: Row, density: float) -> bool:
    return row.equal and abs(row.density - density) <= 0.1 * density


def _range(ratios: list[float]) -> str:
    if not ratios:
        return ""
    low, high = f"{min(ratios):.1f}x", f"{max(ratios):.1f}x"
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    write_pages()
