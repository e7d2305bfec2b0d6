"""Few ratios as bars: one for each form at each density, beside those of the dense forms."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from cutwork.bench.results import DENSE_FORMS, RANDOM, Measurement, title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of more points than these there are curves.
FEW = 3
ACROSS, WIDTH, BAR_HEIGHT, HEAD_HEIGHT = 2, 4.6, 0.2, 0.75
COLOURS: dict[str, str] = {"tile": "#0072b2", "packed": "#0072b2", "fused": "#d55e00", "moving": "#009e73"}
GREY, IDEAL = "#9a9a9a", "ideal"


@final
@dataclass(frozen=True)
class Bar:
    """How fast one form is, in times the fastest dense form, and how fast its operations would let it be."""

    label: str
    form: str
    ratio: float
    ideal: float | None


def find_bars(rows: Iterable[Measurement]) -> dict[str, list[Bar]]:
    """Return the bars of each panel; none where some form was measured at more densities than a few.

    Others' forms have one for each density, on the pattern that suits them best.
    """
    panels: dict[str, list[Measurement]] = {}
    for row in rows:
        if row.ratio is not None and row.what != RANDOM:
            panels.setdefault(title_of(row), []).append(row)
    panels = {title: own for title, own in panels.items() if any(row.form not in DENSE_FORMS for row in own)}
    if any(count > FEW for own in panels.values() for count in _counts(own)):
        return {}
    return {title: [_bar(row, own) for row in _chosen(own)] for title, own in panels.items()}


def draw_bars(panels: Mapping[str, Sequence[Bar]]) -> "tuple[Figure, int]":
    """Return the figure, and how many entries of a legend fit beside each other."""
    from matplotlib.figure import Figure

    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    most = max(map(len, panels.values()))
    height = HEAD_HEIGHT + BAR_HEIGHT * most
    figure = Figure(figsize=(WIDTH * across, height * down + 0.5), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    farthest = max(max(bar.ratio, bar.ideal or 1.0) for bars in panels.values() for bar in bars)
    for axis, (title, bars) in zip(axes, panels.items(), strict=False):
        for place, bar in enumerate(bars):
            axis.barh(place, bar.ratio, height=0.68, color=COLOURS.get(bar.form, GREY))
            if bar.ideal is not None:
                look: dict[str, Any] = {"color": "black", "marker": "|", "markersize": 7, "linestyle": "none"}
                axis.plot(bar.ideal, place, label=IDEAL, **look)
            # Where the line at 1 would run through it, beside that.
            beside = max(bar.ratio, 1.0), place
            text = axis.annotate(f"{bar.ratio:.2f}x", beside, xytext=(4, 0), textcoords="offset points", va="center")
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.8})
        axis.axvline(1, color="black", linewidth=0.9)
        axis.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axis.set_ylim(len(bars) - 0.4, -0.6)
        axis.set_xlim(0, 1.2 * farthest)
        axis.tick_params(left=False)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.set_title(title, loc="left", fontsize=8)
        axis.set_xlabel("times the fastest dense form")
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure, 3


def _counts(rows: Sequence[Measurement]) -> Iterable[int]:
    """Return how many points each form has on each pattern."""
    lines: dict[tuple[str, str, str], int] = {}
    for row in rows:
        if row.form not in DENSE_FORMS:
            key = row.form, row.pattern, row.precision
            lines[key] = lines.get(key, 0) + 1
    return lines.values()


def _chosen(rows: Sequence[Measurement]) -> list[Measurement]:
    """Return a row for each bar: of those that are no form of ours, the best at each density."""
    best: dict[tuple[str, str, float], Measurement] = {}
    for row in rows:
        key = row.form, row.precision, 0.0 if row.form in DENSE_FORMS else round(row.density, 2)
        if row.form not in COLOURS and (row.ratio or 0.0) > ((best[key].ratio or 0.0) if key in best else 0.0):
            best[key] = row
    kept = [row for row in rows if row.form in COLOURS or any(row is one for one in best.values())]
    # The dense forms took turns with every pattern; they stand above all.
    order = {form: place for place, form in enumerate(DENSE_FORMS)}
    return sorted(kept, key=lambda row: order.get(row.form, len(order)))


def _bar(row: Measurement, beside: Sequence[Measurement]) -> Bar:
    parts = [row.form]
    if len({each.precision for each in beside}) > 1:
        parts.append(row.precision)
    if row.form in DENSE_FORMS:
        return Bar(" ".join(parts), row.form, row.ratio or 0.0, None)
    if len({each.pattern for each in beside if each.form not in DENSE_FORMS}) > 1:
        parts.append(row.pattern)
    return Bar(f"{' '.join(parts)}, {100 * row.density:.2g} %", row.form, row.ratio or 0.0, row.ideal)
