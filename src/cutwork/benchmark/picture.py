"""The crossover curves: how much faster than dense each form is, over the density."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutwork.benchmark.results import Row, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]

# One look for each pattern: told apart in grey print too, by their markers.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX"
IDEAL = "ideal"
# What others compute stays in the background, told apart by dashes.
OTHERS = {"bsr": (1, 1), "bsr-left": (4, 1), "csr": (1, 3), "csr-left": (4, 3), "scipy": (6, 2, 1, 2)}
PANEL_WIDTH, PANEL_HEIGHT, ACROSS = 3.6, 3.0, 3


def curves(rows: Iterable[Row]) -> dict[str, dict[str, Points]]:
    """Return the points (density, ratio) of each line of each panel; a line has two points or more.

    Our own forms have a line for each pattern, others' only one, for the pattern that suits them best.
    """
    panels: dict[str, dict[tuple[str, str], Points]] = {}
    ideals: dict[str, dict[float, float]] = {}
    for row in rows:
        if row.ratio is not None and row.pattern != "dense":
            title = f"{title_of(row)}, {row.precision}"
            panels.setdefault(title, {}).setdefault((row.form, row.pattern), []).append((row.density, row.ratio))
            ideals.setdefault(title, {})[row.density] = row.ideal
    named = {title: _named(lines) for title, lines in panels.items()}
    return {title: lines | {IDEAL: sorted(ideals[title].items())} for title, lines in named.items() if lines}


def _named(lines: dict[tuple[str, str], Points]) -> dict[str, Points]:
    found = {key: sorted(points) for key, points in lines.items() if len(points) > 1}
    own = {pattern: points for (form, pattern), points in found.items() if form not in OTHERS}
    others = {
        form: max((points for (other, _), points in found.items() if other == form), key=lambda points: points[0][1])
        for form in OTHERS
        if any(other == form for other, _ in found)
    }
    return own | others


def draw(rows: Iterable[Row], path: Path) -> list[Path]:
    """Draw the curves into a file, SVG or PNG as its name says, and return it.

    Nothing is drawn without curves or without matplotlib; then nothing is returned.
    """
    panels = curves(rows)
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return []
    if not panels:
        return []
    across = 2 if len(panels) == 4 else min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    looks = _looks(panels)
    # The texts of an SVG stay texts, and the same numbers give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "cutwork", "font.size": 8}):
        figure = Figure(figsize=(PANEL_WIDTH * across, PANEL_HEIGHT * down + 0.7), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).flatten()
        for axis, (title, lines) in zip(axes, panels.items(), strict=False):
            _draw_panel(axis, title, lines, looks)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        handles = {
            label: handle
            for axis in axes[: len(panels)]
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        names = sorted(handles, key=list(looks).index)
        figure.legend(
            [handles[name] for name in names],
            names,
            loc="outside lower center",
            ncols=min(len(names), 3 * across),
            frameon=False,
        )
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    return [path]


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
    others = {
        name: {"color": "#707070", "dashes": dashes, "linewidth": 1.1}
        for name, dashes in OTHERS.items()
        if name in names
    }
    return looks | others | {IDEAL: {"color": "black", "linestyle": "--", "linewidth": 0.9}}


def _draw_panel(axis: "Axes", title: str, lines: Mapping[str, Points], looks: Mapping[str, dict[str, Any]]) -> None:
    densities = sorted({density for points in lines.values() for density, _ in points})
    axis.axhline(1, color="black", linewidth=0.9)
    for name, points in lines.items():
        axis.plot(*zip(*points, strict=True), label=name, **looks[name])
    axis.set_xscale("log")
    axis.set_yscale("log")
    ticks = _apart(densities)
    axis.set_xticks(
        ticks, [f"{100 * density:{'.0f' if density > 0.02 else '.2g'}} %" for density in ticks], minor=False
    )
    axis.set_xticks([], minor=True)
    lowest, highest = axis.get_ylim()
    ratios = [ratio for ratio in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if lowest <= ratio <= highest]
    axis.set_yticks(ratios, [f"{ratio:g}x" for ratio in ratios])
    axis.set_yticks([], minor=True)
    axis.grid(color="#dddddd", linewidth=0.5)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(title, loc="left", fontsize=8)
    axis.set_xlabel("weights kept")
    axis.set_ylabel("times the fastest dense form")


def _apart(densities: Iterable[float]) -> list[float]:
    """Return those that are far enough from the one before to have a label of their own; patterns round differently."""
    ticks: list[float] = []
    for density in densities:
        if not ticks or density > 1.15 * ticks[-1]:
            ticks.append(density)
    return ticks
