"""Pictures of what was measured: curves over the density, bars where these are few, random layers as points."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutwork.bench.bars import draw_bars, find_bars
from cutwork.bench.results import RANDOM, Measurement, Results, title_of
from cutwork.speed.machine import Machine
from cutwork.text import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = list[tuple[float, float]]

# One look for each form and pattern: told apart in grey print too, by their markers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX"
IDEAL = "ideal"
# What others compute stays in the background, in greys: a grey and a marker for each format, dashes for the sides.
OTHERS: dict[str, dict[str, Any]] = {
    "bsr": {"color": "#333333", "dashes": (1, 1.2), "marker": "x"},
    "bsr-left": {"color": "#333333", "dashes": (5, 1.5), "marker": "x"},
    "csr": {"color": "#7a7a7a", "dashes": (1, 1.2), "marker": "+"},
    "csr-left": {"color": "#7a7a7a", "dashes": (5, 1.5), "marker": "+"},
    "scipy": {"color": "#adadad", "dashes": (6, 2, 1, 2), "marker": "1"},
}
# The ticks below random layers.
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
PANEL_WIDTH, PANEL_HEIGHT, ACROSS = 3.6, 3.0, 3
RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
# What `pack` puts up with: timings of one form agree no better.
NEARLY_DENSE = 0.97


def curves(rows: Iterable[Measurement]) -> dict[str, dict[str, Points]]:
    """Return the points (density, ratio) of each line of each panel; a line has two points or more.

    Our own forms have a line for each pattern, others' only one, for the pattern that suits them best.
    """
    panels: dict[str, dict[tuple[str, str], Points]] = {}
    ideals: dict[str, dict[float, float]] = {}
    for row in rows:
        if row.ratio is not None and row.pattern != "dense" and row.what != RANDOM:
            title = f"{title_of(row)}, {row.precision}"
            panels.setdefault(title, {}).setdefault((row.form, row.pattern), []).append((row.density, row.ratio))
            ideals.setdefault(title, {})[row.density] = row.ideal
    named = {title: _named(lines) for title, lines in panels.items()}
    return {title: lines | {IDEAL: sorted(ideals[title].items())} for title, lines in named.items() if lines}


def points(rows: Iterable[Measurement]) -> dict[str, Points]:
    """Return the points (density, ratio) of random layers, by the form they were packed in."""
    found: dict[str, Points] = {}
    for row in rows:
        if row.what == RANDOM and row.ratio is not None and row.pattern != "dense":
            found.setdefault(row.form, []).append((row.density, row.ratio))
    return dict(sorted(found.items()))


def _named(lines: dict[tuple[str, str], Points]) -> dict[str, Points]:
    found = {key: sorted(points) for key, points in lines.items() if len(points) > 1}
    own = {f"{form} {pattern}": points for (form, pattern), points in found.items() if form not in OTHERS}
    others = {
        form: max((points for (other, _), points in found.items() if other == form), key=lambda points: points[0][1])
        for form in OTHERS
        if any(other == form for other, _ in found)
    }
    return own | others


def draw(results: Results, path: Path) -> list[Path]:
    """Draw the curves, bars or points into a file, SVG or PNG as its name says, and return it.

    Nothing is drawn where there are none, or without matplotlib; then nothing is returned.
    """
    bars, panels, scattered = find_bars(results.rows), curves(results.rows), points(results.rows)
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        return []
    if not bars and not panels and not scattered:
        return []
    # The texts of an SVG stay texts, and the same numbers give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cutwork", "font.size": 8}):
        if bars:
            figure, across = draw_bars(bars)
        else:
            figure, across = _figure_of_curves(panels) if panels else _figure_of_points(scattered)
        _add_legend(figure, across, results.machine)
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return [path]


def _figure_of_curves(panels: Mapping[str, Mapping[str, Points]]) -> "tuple[Figure, int]":
    """Return the figure, and how many entries of a legend fit beside each other."""
    from matplotlib.figure import Figure

    looks = _looks(panels)
    across = 2 if len(panels) == 4 else min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(PANEL_WIDTH * across, PANEL_HEIGHT * down + 0.9), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, (title, lines) in zip(axes, panels.items(), strict=False):
        _draw_panel(axis, title, lines, looks)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure, 3 * across


def _figure_of_points(scattered: Mapping[str, Points]) -> "tuple[Figure, int]":
    """Return the figure, and how many entries of a legend fit beside each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 * PANEL_WIDTH, 1.4 * PANEL_HEIGHT), layout="constrained")
    axis = figure.subplots()
    for (form, found), colour, marker in zip(scattered.items(), COLOURS, MARKERS, strict=False):
        look: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 4, "alpha": 0.7, "markeredgewidth": 0}
        axis.plot(*zip(*found, strict=True), linestyle="none", label=form, zorder=3, **look)
    axis.axhline(NEARLY_DENSE, color="black", linewidth=0.9, linestyle=":", label=f"{NEARLY_DENSE}x")
    count = sum(map(len, scattered.values()))
    slowest = min(ratio for found in scattered.values() for _, ratio in found)
    _dress(axis, f"{counted(count, 'random layer')}, as pack leaves them", DENSITIES, slowest, "times dense")
    return figure, 5


def _add_legend(figure: "Figure", across: int, machine: Machine) -> None:
    """Name all lines once below the panels, and where they were measured."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        handles |= {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    # What others compute and the ideal come last, though the first panel may lack some form of ours.
    names = sorted(handles, key=lambda name: (name == IDEAL, name in OTHERS))
    legend = figure.legend(
        [handles[name] for name in names],
        names,
        loc="outside lower center",
        ncols=min(len(names), across),
        frameon=False,
        title=f"{machine.cpu}, {counted(machine.threads, 'thread')}, {machine.instruction_set}, torch {machine.torch}",
        title_fontproperties={"size": 6.5},
    )
    legend.get_title().set_color("#555555")


def _looks(panels: Mapping[str, Mapping[str, Points]]) -> dict[str, dict[str, Any]]:
    """Return how each line is drawn, the same in all panels."""
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    own = [name for name in names if name not in OTHERS and name != IDEAL]
    looks: dict[str, dict[str, Any]] = {
        name: {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.4,
            "zorder": 3,
        }
        for place, name in enumerate(own)
    }
    others = {name: {**look, "markersize": 4, "linewidth": 1.1} for name, look in OTHERS.items() if name in names}
    return looks | others | {IDEAL: {"color": "black", "linestyle": "--", "linewidth": 0.9}}


def _draw_panel(axis: "Axes", title: str, lines: Mapping[str, Points], looks: Mapping[str, dict[str, Any]]) -> None:
    for name, found in lines.items():
        axis.plot(*zip(*found, strict=True), label=name, **looks[name])
    densities = sorted({density for found in lines.values() for density, _ in found})
    slowest = min(ratio for found in lines.values() for _, ratio in found)
    _dress(axis, title, densities, slowest, "times the fastest dense form")


def _dress(axis: "Axes", title: str, densities: Sequence[float], slowest: float, upward: str) -> None:
    """Give an axis what all pictures share: logarithms both ways, a line at 1x, ticks, a grid and names."""
    axis.axhline(1, color="black", linewidth=0.9)
    axis.set_xscale("log")
    axis.set_yscale("log")
    ticks = _apart(densities)
    axis.set_xticks(
        ticks, [f"{100 * density:{'.0f' if density > 0.02 else '.2g'}} %" for density in ticks], minor=False
    )
    axis.set_xticks([], minor=True)
    lowest, highest = axis.get_ylim()
    # Down to a tick: what is slower than dense must be legible too.
    if slowest < 1:
        lowest = max((ratio for ratio in (*RATIOS, 0.7) if ratio < slowest), default=lowest)
    axis.set_ylim(lowest, highest)
    ratios = [ratio for ratio in (*RATIOS, 0.7) if lowest <= ratio <= highest and (ratio != 0.7 or lowest == ratio)]
    axis.set_yticks(ratios, [f"{ratio:g}x" for ratio in ratios])
    axis.set_yticks([], minor=True)
    axis.grid(color="#dddddd", linewidth=0.5)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, loc="left", fontsize=8)
    axis.set_xlabel("weights kept")
    axis.set_ylabel(upward)


def _apart(densities: Iterable[float]) -> list[float]:
    """Return those that are far enough from the one before to have a label of their own; patterns round differently."""
    ticks: list[float] = []
    for density in densities:
        if not ticks or density > 1.15 * ticks[-1]:
            ticks.append(density)
    return ticks
