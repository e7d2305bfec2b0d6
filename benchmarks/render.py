"""Write RESULTS.md, the README's table and the pictures from the results.json of each piece: nobody types a number.

python benchmarks/render.py
"""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from cutwork.bench.picture import draw
from cutwork.bench.results import (
    DENSE_FORMS,
    HEAD,
    Measurement,
    Results,
    cells,
    find_fastest,
    pair_with_dense,
    title_of,
)
from cutwork.text import counted

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
# What the README shows, by the piece and the title that it has there: work that people know.
KNOWN = {
    ("vit-b16", "model vit-b16 linears, forward, batch 8"): "ViT-B/16, 8 images, all linear layers sparse",
    ("vit-b16", "model vit-b16 mlp, forward, batch 8"): "ViT-B/16, 8 images, only the MLPs sparse",
    ("vit-b16-train", "train vit-b16 linears, step, batch 8"): "ViT-B/16, a training step of 8 images",
    ("resnet50", "model resnet50 convs, forward, batch 8"): "ResNet-50, 8 images",
    ("llama-small", "model llama-small linears, forward, batch 1"): "a small Llama, one text",
    ("train-layer", "train mlp:768->3072, step, batch 1576"): "an MLP 768-3072-768, a training step of 1576 tokens",
    ("linear-1576", "linear 768->3072, forward, tokens 1576"): "a linear layer 768-3072, 1576 tokens",
    ("conv", "conv 128@16x16 3x3, forward, batch 64"): "a 3x3 convolution, 128 channels, 64 images of 16x16",
}
# The pieces of which the summary shows something, and the densities that it shows.
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
UNSTEADY = "~"
UNSTEADY_NOTE = (
    "`~`: the times of the dense form, or of most tile shapes, have quartiles more than a tenth apart. The machine was "
    "busy or the form itself is uneven: believe no small difference."
)
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
    summary = f"## In short\n\n{summary_table(measured)}\n"
    return "\n".join([head, summary, *map(_piece, measured, measured.values())])


def readme_table(measured: dict[str, Results]) -> str:
    """Return the table of the README: times as fast as the fastest dense form, of work that people know."""
    lines = []
    for (piece, title), words in KNOWN.items():
        rows = [row for row in measured[piece].rows if title_of(row) == title] if piece in measured else []
        pairs = [(row, row.ratio, find_fastest(dense)) for row, dense in pair_with_dense(rows) if row.form in OWN]
        ranges = [_range([one for one in pairs if _is_about(one[0], density)]) for density in DENSITIES[1:3]]
        lines += [f"| {words} | {' | '.join(ranges)} |"] if any(ranges) else []
    if not lines:
        return NOTHING
    machine = next(measured[piece].machine for piece, _ in KNOWN if piece in measured)
    return "\n".join(
        [
            f"| | {' | '.join(f'{density:.0%} of the weights' for density in DENSITIES[1:3])} |",
            "|---|---|---|",
            *lines,
            "",
            "Times as fast as the fastest dense form, whichever that is, after results were found equal; from the "
            f"slowest to the fastest tile shape, on {machine.cpu} with {counted(machine.threads, 'thread')}, torch "
            f"{machine.torch}.",
            *([UNSTEADY_NOTE] if any(UNSTEADY in line for line in lines) else []),
        ]
    )


def summary_table(measured: dict[str, Results]) -> str:
    """Return times as fast as dense, from the slowest to the fastest tile measured, as a table."""
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
            f"{counted(machine.threads, 'thread')}, torch {machine.torch}.",
            *([UNSTEADY_NOTE] if any(UNSTEADY in line for line in lines) else []),
            *_rates(shown.values()),
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


def draw_pictures() -> None:
    """Draw the picture of each piece, as the command does that measures it."""
    for name, results in pieces().items():
        draw(results, HERE / name / "picture.svg")


def _piece(name: str, results: Results) -> str:
    machine = "  \n".join(str(results.machine).splitlines()[:2])
    picture = f"![times as fast as dense]({name}/picture.svg)\n" if (HERE / name / "picture.svg").exists() else ""
    lines = [f"## {name}\n", machine, "", f"    {results.machine.command}\n", picture]
    groups = {title: list(rows) for title, rows in groupby(results.rows, key=title_of)}
    if len(groups) > MOST_TABLES:
        lines += [_by_gain(groups), ""]
    else:
        for title, rows in groups.items():
            lines += [f"**{title}**\n", _markdown(HEAD, [cells(row) for row in rows]), ""]
    return "\n".join([*lines, *(f"- {note}" for note in results.notes), ""])


def _by_gain(groups: dict[str, list[Measurement]]) -> str:
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
        pairs = [(row, dense) for row, dense in list(pair_with_dense(group)) if row.form in OWN]
        found = {
            "the fastest dense form": [(row, row.ratio, find_fastest(dense)) for row, dense in pairs],
            "PyTorch, dense fp32": [
                (row, row.ratio_to_fp32, next((one for one in dense if one.is_base), None)) for row, dense in pairs
            ],
        }
        cells_of = {
            against: [_range([one for one in ratios if _is_about(one[0], density)]) for density in DENSITIES]
            for against, ratios in found.items()
        }
        # Where PyTorch's own is the fastest, or as good as, one line says both.
        once = {" | ".join(ranges): against for against, ranges in reversed(cells_of.items()) if any(ranges)}
        lines += [f"| {title} | {against} | {ranges} |" for ranges, against in reversed(once.items())]
    return lines


def _rates(measured: Iterable[Results]) -> list[str]:
    """Say what a ratio is made of, if one passes one over the density."""
    rows = [row for results in measured for row in results.rows if row.gflops_per_s and row.is_steady]
    if not any(row.form in OWN and (row.ratio or 0.0) > row.ideal for row in rows):
        return []
    linear = [row for row in rows if row.what == "linear" and row.precision == "fp32" and row.work == "forward"]
    best = {row.form: row.gflops_per_s for row in sorted(linear, key=lambda row: row.gflops_per_s or 0.0)}
    named = ", ".join(f"{form} {best[form]:.0f}" for form in (*DENSE_FORMS, *OWN) if form in best)
    return [
        "A ratio is one over the share kept, times the operations a second of the tiles (on kept weights) over those "
        "of the dense form. So it passes one over the share kept where tiles do more operations a second than that "
        f"dense form does. The highest steady rates of the linear layers above, forward, in GF/s: {named}."
    ]


def _is_about(row: Measurement, density: float) -> bool:
    return row.equal and abs(row.density - density) <= 0.1 * density


def _range(ratios: Sequence[tuple[Measurement, float | None, Measurement | None]]) -> str:
    """Write ratios, each with its row and the dense one below it, as a range; `~` where they rest on unsteady times."""
    found = [(row, ratio, base) for row, ratio, base in ratios if ratio is not None]
    if not found:
        return ""
    low, high = (f"{choose(ratio for _, ratio, _ in found):.1f}x" for choose in (min, max))
    unsteady = any(base and not base.is_steady for _, _, base in found)
    unsteady |= sum(not row.is_steady for row, _, _ in found) > len(found) / 2
    return (low if low == high else f"{low} to {high}") + (UNSTEADY if unsteady else "")


if __name__ == "__main__":
    draw_pictures()
    write_pages()
