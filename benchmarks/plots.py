"""The one plot of our benchmarks: a row a contestant, a dot a round, a bar at the median."""

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stillhouse.report.drawing import compact
from stillhouse.report.palette import THEMES

THEME = THEMES["light"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A contestant: what it is called, its values, whether it is ours, what to write beside it."""

    label: str
    values: Sequence[float]
    ours: bool
    note: str


def strip(axes: Axes, rows: Sequence[Row], label: str) -> None:
    """Dots over rows, first row on top, the note of each row at the right edge."""
    for place, row in enumerate(rows):
        colour = THEME.series[0] if row.ours else THEME.baseline
        middle = statistics.median(row.values)
        heights = [place + (number % 5 - 2) * 0.07 for number in range(len(row.values))]
        axes.scatter(row.values, heights, s=14, color=colour, alpha=0.45, linewidths=0)
        axes.plot([middle, middle], [place - 0.3, place + 0.3], color=colour, linewidth=2.5)
    dress(axes, rows, label)


def bars(axes: Axes, rows: Sequence[Row], label: str) -> None:
    """A bar a row, from zero, of its median."""
    for place, row in enumerate(rows):
        colour = THEME.series[0] if row.ours else THEME.baseline
        axes.barh(place, statistics.median(row.values), height=0.5, color=colour)
    axes.set_xlim(left=0)
    dress(axes, rows, label)


def dress(axes: Axes, rows: Sequence[Row], label: str) -> None:
    axes.set_yticks(range(len(rows)), [row.label for row in rows], color=THEME.ink)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(label, color=THEME.muted)
    axes.tick_params(axis="both", length=0)
    axes.tick_params(axis="x", colors=THEME.muted)
    axes.grid(axis="x", color=THEME.grid)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for place, row in enumerate(rows):
        axes.annotate(
            row.note,
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=THEME.ink,
        )


def limit(axes: Axes, value: float, text: str) -> None:
    """A dashed line for a goal, named above the plot."""
    axes.axvline(value, color=THEME.series[1], linestyle="--", linewidth=1.2)
    axes.annotate(
        text,
        (value, 1.0),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="bottom",
        color=THEME.series[1],
        fontsize=9,
    )


def figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor=THEME.paper)


def save(drawn: Figure, path: Path) -> None:
    """As SVG, the same bytes for the same numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": path.name}):
        text = io.StringIO()
        drawn.savefig(text, format="svg", metadata={"Date": None}, facecolor=THEME.paper)
    path.write_text(compact(text.getvalue()))
