"""Runs as one page of HTML that needs nothing else: no network, no other file."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from cutwork.lab.comparing.charts import PALETTE, inline
from cutwork.lab.comparing.findings import Finding, best_within, common, differing, group_runs, naming
from cutwork.lab.comparing.leaderboard import Leaderboard
from cutwork.lab.comparing.looking import Look
from cutwork.lab.sweeping.options import names_in, write_value
from cutwork.text import counted, label
from cutwork.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of more masks a page shows these, spread evenly over the layers.
MOST_MASKS = 8
TITLES = {
    "density": "Accuracy and density",
    "step": "Accuracy and the time of a training step",
    "forward": "Accuracy and the time of a forward pass",
    "accuracy": "Accuracy while it was trained",
    "loss": "Loss while it was trained",
}


def write_page(board: Leaderboard, looks: Mapping[str, Look], charts: "Mapping[str, Figure]") -> str:
    """Return the page."""
    runs = board.runs
    judged = [run for run in runs if run.best is not None]
    title = f"{counted(len(runs), 'run')}, the best {runs[0].name}" if judged else counted(len(runs), "run")
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_count(runs))} Accuracy is the share of the test data that is right. '
        f"Written by cutwork {escape(__version__)}.</p>",
        _section("Leaderboard", _leaderboard(board)),
        _section("Over seeds", _over_seeds(judged)),
        _section("Best accuracy at a share of the dense time", _within(board)),
        _section("Charts", _charts(charts)),
        _section("What differs", _differences(runs)),
        _section("What did not end", _failures(runs)),
        _section("Masks and layers", "".join(_run(run, looks[run.name]) for run in judged)),
    ]
    page = Template((files("cutwork.lab.comparing") / "page.html").read_text())
    return page.substitute(title=escape(title), body="\n".join(parts))


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{content}" if content else ""


def _count(runs: Sequence[Finding]) -> str:
    ended = sum(run.summary is not None for run in runs)
    failed = sum(run.summary is None and run.error is not None for run in runs)
    told = [f"{ended} ended", *([f"{failed} failed"] if failed else [])]
    left = len(runs) - ended - failed
    return ", ".join([*told, *([f"{left} not ended"] if left else [])]) + "."


def _table(
    head: Sequence[str], rows: Iterable[Sequence[Any]], *, words: Sequence[int] = (), sorts: bool = False
) -> str:
    """Write a table; cells are texts, or pairs of a text and what to sort by; `words` are read from the left."""

    def cell(kind: str, place: int, content: Any) -> str:
        text, key = content if isinstance(content, tuple) else (content, None)
        own = f' data-key="{escape(str(key))}"' if key is not None else ""
        side = ' class="word"' if place in words else ""
        return f"<{kind}{side}{own}>{escape(str(text))}</{kind}>"

    def row(kind: str, cells: Sequence[Any]) -> str:
        return f"<tr>{''.join(cell(kind, *pair) for pair in enumerate(cells))}</tr>"

    body = "\n".join(row("td", cells) for cells in rows)
    if not body:
        return ""
    sorted_by = ' class="sorts"' if sorts else ""
    return (
        f'<div class="wide"><table{sorted_by}><thead>{row("th", head)}</thead><tbody>\n{body}\n</tbody></table></div>'
    )


def _leaderboard(board: Leaderboard) -> str:
    steps, forwards = board.step_shares, board.forward_shares
    head = ["", "run", "best", "at the end", "density", "training FLOPs", "step, ms"]
    head += [*(["of dense"] if steps else []), *(["forward, ms"] if board.forward_ms else [])]
    head += [*(["of dense"] if forwards else []), "seconds"]
    rows = []
    for place, run in enumerate(board.runs, 1):
        if run.best is None:
            continue
        told = run.summary or {}
        cells = [
            place,
            run.name,
            _number(run.best, ".2%"),
            _number(told.get("test_accuracy"), ".2%") or run.state.partition(":")[0],
            _number(run.density, ".3g"),
            (_number(told.get("flops"), ".2e"), told.get("flops", 0)),
            _number(run.step_ms, ".3g"),
        ]
        cells += [_number(steps.get(run.name), ".2f")] if steps else []
        cells += [_number(board.forward_ms.get(run.name), ".3g")] if board.forward_ms else []
        cells += [_number(forwards.get(run.name), ".2f")] if forwards else []
        rows.append([*cells, _number(told.get("seconds"), ".0f")])
    remarks = ["Best is the epoch that was best on the test data themselves.", "Step is the time of a training step."]
    if not steps:
        remarks.append("No dense run is alike in model, data and batch, so no time is compared with one.")
    return f'{_table(head, rows, words=[1], sorts=True)}<p class="soft">{" ".join(remarks)}</p>' if rows else ""


def _over_seeds(runs: Sequence[Finding]) -> str:
    groups = group_runs(runs, naming(runs))
    if not any(group.spread is not None for group in groups):
        return ""
    rows = [
        (
            group.label,
            len(group.bests),
            f"{group.mean:.2%}",
            "" if group.spread is None else f"{100 * group.spread:.2f} points",
            f"{min(group.bests):.2%}",
            f"{max(group.bests):.2%}",
        )
        for group in groups
    ]
    return _table(["runs", "seeds", "mean best", "standard deviation", "least", "most"], rows, words=[0], sorts=True)


def _within(board: Leaderboard) -> str:
    kinds = {"training step": board.step_shares, "forward pass, packed": board.forward_shares}
    known = {what: best_within(board.runs, shares) for what, shares in kinds.items() if shares}
    if not known:
        return ""
    limits = next(iter(known.values()))
    rows = []
    for limit in limits:
        cells: list[Any] = [f"{limit:.0%}"]
        for what, found in known.items():
            run = found[limit]
            taken = f"{kinds[what][run.name]:.0%}" if run else ""
            cells += [run.name, f"{run.best:.2%}", taken] if run else ["none", "", ""]
        rows.append(cells)
    head = ["at most", *(part for what in known for part in (f"by {what}", "best", "takes"))]
    return _table(head, rows, words=[1 + 3 * place for place in range(len(known))])


def _charts(charts: "Mapping[str, Figure]") -> str:
    drawn = "\n".join(
        f"<figure><figcaption>{TITLES[name]}</figcaption>{inline(chart, TITLES[name])}</figure>"
        for name, chart in charts.items()
    )
    return f'<div class="charts">\n{drawn}\n</div>' if drawn else ""


def _differences(runs: Sequence[Finding]) -> str:
    options = differing(runs)
    rows = []
    for place, run in enumerate(runs):
        told = {*names_in(run.training, [*options])}
        cells = [write_value(values[place]) if option in told else "" for option, values in options.items()]
        rows.append([run.name, *cells])
    same = [(option, write_value(value)) for option, value in common(runs).items()]
    table = _table(["run", *options], rows, words=range(len(options) + 1), sorts=True) if options else ""
    listed = _table(["option", "value"], same, words=[0, 1])
    return f"{table}<details><summary>The same in all: {counted(len(same), 'option')}</summary>{listed}</details>"


def _failures(runs: Sequence[Finding]) -> str:
    left: dict[str, list[str]] = {}
    for run in runs:
        if run.summary is None:
            left.setdefault(run.state, []).append(run.name)
    return "".join(
        f'<p class="bad">{escape(state)}</p><p>{escape("; ".join(names))}</p>' for state, names in left.items()
    )


def _run(run: Finding, look: Look) -> str:
    if look.missing:
        content = f"<p>Its model was not read: {escape(look.missing)}</p>"
    elif not look.layers:
        content = "<p>Nothing is sparse in it.</p>"
    else:
        content = _masks(look) + _layers(look)
    accuracy = "" if run.best is None else f" <span class='soft'>{run.best:.2%}, density {run.density:.3g}</span>"
    return f"<details><summary>{escape(run.name)}{accuracy}</summary>{content}</details>"


def _masks(look: Look) -> str:
    names = [*look.layers]
    shown = names
    if len(names) > MOST_MASKS:
        shown = [names[round(place)] for place in np.linspace(0, len(names) - 1, MOST_MASKS)]
    drawn = []
    for name in shown:
        layer = look.layers[name]
        told = f"{label(name)}: {layer.outputs} outputs down, {layer.inputs} inputs across"
        picture = f'<img alt="{escape(told)}" src="{_picture(layer.mask)}">'
        drawn.append(f"<figure><figcaption>{escape(told)}</figcaption>{picture}</figure>")
    remark = f"<p class='soft'>{len(shown)} of {len(names)} masks.</p>" if len(shown) < len(names) else ""
    return f'<div class="masks">{"".join(drawn)}</div>{remark}'


def _picture(mask: np.ndarray) -> str:
    """Return a mask as a picture inside the page: in one colour, the stronger the more is kept."""
    from matplotlib.image import imsave

    colour = [int(PALETTE[0][place : place + 2], 16) / 255 for place in (1, 3, 5)]
    pixels = np.empty((*mask.shape, 4))
    pixels[..., :3], pixels[..., 3] = colour, mask
    content = io.BytesIO()
    imsave(content, pixels, format="png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _layers(look: Look) -> str:
    head = ["layer", "kind", "shape", "pattern", "density", "kept weights"]
    head += ["form", "times dense", "reason"] if look.plan else []
    rows = []
    for name, layer in look.layers.items():
        facts = layer.facts
        cells = [
            label(name),
            facts.kind,
            "x".join(map(str, facts.shape)),
            facts.pattern,
            f"{facts.density:.4g}",
            f"{facts.num_kept:,}",
        ]
        if look.plan:
            row = look.plan.get(name)
            cells += ["", "", ""] if row is None else [row.form, _number(row.gain, ".2f"), row.reason]
        rows.append(cells)
    timing = look.forward
    told = ""
    if timing is not None:
        unsteady = "" if timing.is_steady else ", not steadily"
        told = f"<p>A forward pass of {look.batch} examples takes {1000 * timing.median_s:.3g} ms packed{unsteady}.</p>"
    return _table(head, rows, words=[0, 1, 3, 6, 8]) + told


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(value, form)
