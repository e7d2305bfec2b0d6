"""Runs as charts: accuracy over density and time, and curves; for files, and as SVG that stands inside a page."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cutwork.lab.comparing.findings import Finding, Group, group_runs, naming
from cutwork.lab.sweeping.options import is_dense

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In a page each of these is a colour of the page's style, which knows light and dark.
INK, LINE, REST = "#1c1d1e", "#dddedf", "#a9aaab"
PALETTE = ("#2f6fb5", "#d9772b", "#2f9a6d", "#b2559b", "#8a6d3c")
MARKERS = "os^vP"
DASHES = (0, (4, 3))
# Of more points none has its density beside it.
MOST_LABELS = 8
# Densities nearer to each other have no ticks of their own.
APART = 1.25
SIZE = (5.2, 3.4)
# Ids of what has a title, which a page shows under the pointer.
TIP = "tip:"
# Of more points on a curve a picture shows no more.
MOST_POINTS = 400

Point = tuple[float, float]


def draw_charts(
    runs: Sequence[Finding],
    step_shares: Mapping[str, float],
    forward_ms: Mapping[str, float],
    forward_shares: Mapping[str, float],
) -> "dict[str, Figure]":
    """Return the charts there is something to draw in, by the names of their files."""
    runs = [run for run in runs if run.best is not None]
    step_ms = {run.name: time for run in runs if (time := run.step_ms) is not None}
    charts = {
        "density": _over_density(runs),
        "step": _over_time(runs, step_ms, step_shares, "training step"),
        "forward": _over_time(runs, forward_ms, forward_shares, "forward pass"),
        "accuracy": _curves(runs, "test_accuracy", "right in the test data, %", factor=100),
        "loss": _curves(runs, "loss", "training loss", is_log=True),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def inline(figure: "Figure", title: str) -> str:
    """Return a chart as SVG that may stand in a page: without addresses, in the colours of the page, with titles."""
    text = io.StringIO()
    save(figure, text, format="svg", transparent=True)
    svg = re.sub(
        r"(?s)^.*?<svg|<metadata>.*?</metadata>", lambda found: "<svg" * found[0].endswith("<svg"), text.getvalue()
    )
    svg = re.sub(r' (?:xmlns|xmlns:xlink|version)="[^"]*"', "", svg)
    svg = re.sub(r'<svg height="[^"]*"|<svg width="[^"]*"', "<svg", re.sub(r' (width|height)="[\d.]+pt"', "", svg))
    svg = re.sub(rf'<g id="{TIP}([^"]*)">', r'<g class="tip"><title>\1</title>', svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    for number, colour in enumerate(PALETTE):
        svg = svg.replace(colour, f"var(--c{number})")
    svg = svg.replace(INK, "var(--ink)").replace(LINE, "var(--line)").replace(REST, "var(--rest)")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def save(figure: "Figure", file: Any, **options: Any) -> None:
    """Write a chart; the same numbers give the same SVG, whose texts stay texts."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cutwork"}):
        is_svg = options.get("format") == "svg" or str(file).endswith(".svg")
        figure.savefig(file, dpi=150, metadata={"Date": None} if is_svg else None, **options)


def _over_density(runs: Sequence[Finding]) -> "Figure | None":
    sparse = [run for run in runs if not is_dense(run.training)]
    densities = sorted({run.density for run in sparse})
    if not densities or densities[-1] < APART * densities[0]:
        return None
    figure, axis = _figure()
    for group in group_runs(runs, naming(runs)):
        if group.is_dense:
            axis.axhline(100 * group.mean, color=INK, linewidth=1, linestyle=DASHES, label=group.label)
    _points(
        axis,
        group_runs(sparse, _families(runs)),
        runs,
        lambda run: run.density,
        lambda run: f"density {run.density:.3g}",
    )
    axis.set_xscale("log")
    ticks: list[float] = []
    for each in densities:
        if not ticks or each > APART * ticks[-1]:
            ticks.append(each)
    axis.set_xticks(ticks, [_percent(tick) for tick in ticks])
    axis.set_xticks([], minor=True)
    return _dressed(figure, "weights kept in sparse layers", "right at best, %")


def _over_time(
    runs: Sequence[Finding], times: Mapping[str, float], shares: Mapping[str, float], what: str
) -> "Figure | None":
    known = [run for run in runs if run.name in times]
    if len(known) < 2:
        return None
    figure, axis = _figure()
    is_share = all(run.name in shares for run in known)

    def tell(run: Finding) -> str:
        share = f", {shares[run.name]:.2f} of dense" if run.name in shares else ""
        return f"density {run.density:.3g}, {times[run.name]:.3g} ms a {what}{share}"

    if is_share:
        axis.axvline(100, color=INK, linewidth=1, linestyle=DASHES)
    families = group_runs(known, _families(runs))
    place = {run.name: 100 * shares[run.name] if is_share else times[run.name] for run in known}
    centres = _points(axis, families, runs, lambda run: place[run.name], tell)
    # More of them would lie over each other.
    for x, y, density in centres if len(centres) <= MOST_LABELS else ():
        axis.annotate(
            *(_percent(density), (x, y)),
            xytext=(5, 4),
            textcoords="offset points",
            color=INK,
            fontsize=7.5,
        )
    axis.set_xlim(left=0)
    return _dressed(figure, f"{what}, % of the dense time" if is_share else f"{what}, ms", "right at best, %")


def _points(
    axis: "Axes",
    families: Sequence[Group],
    runs: Sequence[Finding],
    place: Callable[[Finding], float],
    tell: Callable[[Finding], str],
) -> list[tuple[float, float, float]]:
    """Draw a point for each run, and lines from density to density through the means over seeds; return these."""
    centres = []
    for look, family in _looks(families):
        groups = sorted(group_runs(family.runs, naming(runs)), key=lambda group: group.runs[0].density)
        means = [(float(np.mean([place(run) for run in group.runs])), 100 * group.mean) for group in groups]
        axis.plot(*zip(*means, strict=True), linewidth=1.3, markersize=5, **look)
        faint: dict[str, Any] = {**look, "alpha": 0.5, "markersize": 4, "label": None}
        for run in family.runs:
            assert run.best is not None
            (point,) = axis.plot(place(run), 100 * run.best, markeredgewidth=0, **faint)
            point.set_gid(f"{TIP}{run.name}: {run.best:.2%}, {tell(run)}")
        if not family.is_dense:
            centres += [(*mean, group.runs[0].density) for mean, group in zip(means, groups, strict=True)]
    return centres


def _curves(
    runs: Sequence[Finding], what: str, title: str, *, factor: float = 1.0, is_log: bool = False
) -> "Figure | None":
    figure, axis = _figure()
    is_drawn = False
    # The best are drawn last, over the others.
    for look, group in reversed(_looks(group_runs(runs, naming(runs)))):
        label = look.pop("label")
        marker = look.pop("marker")
        for run in group.runs:
            points = [(record["samples"], factor * record[what]) for record in run.curves if what in record]
            if points:
                is_drawn = True
                alone = marker if len(points) < 2 else None
                (line,) = axis.plot(*_thinned(points), linewidth=1.2, markersize=3, marker=alone, label=label, **look)
                line.set_gid(f"{TIP}{run.name}")
                label = None
    if not is_drawn:
        return None
    if is_log:
        axis.set_yscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: _abbreviated(value))
    return _dressed(figure, "examples learned from", title, is_reversed=True)


def _families(runs: Sequence[Finding]) -> list[str]:
    """Return the options that tell lines of a chart apart, whose points are densities and seeds."""
    return [option for option in naming(runs) if option != "density"]


def _looks(groups: Sequence[Group]) -> list[tuple[dict[str, Any], Group]]:
    """Return how each group is drawn: the best in colours, what is dense in black, all others in grey."""
    sparse = [group.label for group in groups if not group.is_dense]
    looks: list[tuple[dict[str, Any], Group]] = []
    for group in groups:
        if group.is_dense:
            looks.append(({"color": INK, "marker": "D", "label": group.label}, group))
            continue
        number = sparse.index(group.label)
        is_good = number < len(PALETTE)
        label = group.label if is_good else f"{len(sparse) - len(PALETTE)} others" if number == len(PALETTE) else None
        colour = PALETTE[number] if is_good else REST
        looks.append(({"color": colour, "marker": MARKERS[number % len(MARKERS)], "label": label}, group))
    return looks


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _thinned(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Return no more points than can be seen, each the mean of those that it stands for."""
    parts = np.array_split(np.array(points), min(len(points), MOST_POINTS))
    xs, ys = zip(*(part.mean(axis=0).tolist() for part in parts), strict=True)
    return [*xs], [*ys]


def _figure() -> "tuple[Figure, Axes]":
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        told = "the charts need matplotlib; install it with pip install 'cutwork[report]'"
        raise ModuleNotFoundError(told) from error
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, figure.subplots()


def _dressed(figure: "Figure", across: str, upward: str, *, is_reversed: bool = False) -> "Figure":
    """Give a chart its names, its grid and its legend, in few colours."""
    (axis,) = figure.axes
    axis.set_xlabel(across, color=INK, fontsize=9)
    axis.set_ylabel(upward, color=INK, fontsize=9)
    axis.grid(color=LINE, linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", color=LINE, labelcolor=INK, labelsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(REST)
    handles, labels = axis.get_legend_handles_labels()
    if len(labels) > 1:
        order = [*zip(handles, labels, strict=True)]
        order = [*reversed(order)] if is_reversed else order
        figure.legend(
            *zip(*order, strict=True),
            loc="outside lower center",
            ncols=1 if max(map(len, labels)) > 24 else min(len(labels), 3),
            frameon=False,
            fontsize=8,
            labelcolor=INK,
        )
    return figure


def _abbreviated(number: float) -> str:
    for unit in ("", "k", "M", "G"):
        if abs(number) < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}T"
