"""What every plot of a report shares: a drawing in the colours of both modes, as SVG text.

Drawn without pyplot. Text stays text, in the reader's own font; ids are salted and dates left out:
the same document is the same bytes.
"""

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from stillhouse.metrics import units
from stillhouse.metrics.scores import Score
from stillhouse.report.document import Document, Row
from stillhouse.report.palette import MODES, THEMES, Mode, Theme, colours, markers

WIDTH = 4.3  # inches; at 72 points each the labels stay readable on a phone
FONTS = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
LEGEND: Mapping[str, Any] = {"loc": "outside lower center", "ncols": 2, "fontsize": 8.5}
SHORT = 4  # lines of a legend's column that a plot has room for
LINE = 0.17  # inches of one
STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot in both modes, with what a reader who cannot see it is told."""

    name: str
    title: str
    caption: str
    alt: str
    svg: Mapping[Mode, str]
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What drawing needs: the document, its primary score, and the colours of one mode."""

    document: Document
    primary: Score
    theme: Theme

    def named(self) -> list[tuple[Row, str, str]]:
        """Rows that have the primary score, with their colour and marker."""
        rows = self.document.rows
        both = zip(rows, colours(rows, self.theme), markers(rows), strict=True)
        return [(r, c, m) for r, c, m in both if self.primary.name in r.scores]

    def label(self) -> str:
        better = f" ({self.primary.better} is better)" if self.primary.directed else ""
        return f"{units.headed(self.primary)}{better}"

    def shown(self, value: float) -> float:
        return units.shown(value, self.primary)


def both(document: Document, primary: Score, draw: Callable[[Drawing], Figure]) -> dict[Mode, str]:
    drawn: dict[Mode, str] = {}
    for mode in MODES:
        drawing = Drawing(document=document, primary=primary, theme=THEMES[mode])
        drawn[mode] = _svg(draw, drawing)
    return drawn


def _svg(draw: Callable[[Drawing], Figure], drawing: Drawing) -> str:
    with mpl.rc_context(_style(drawing.theme)):
        text = io.StringIO()
        draw(drawing).savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # measured in matplotlib's own font, set in the reader's
    return text.getvalue().replace("'DejaVu Sans'", FONTS)


def _style(theme: Theme) -> dict[Any, Any]:  # Any: matplotlib's own literal type, not exported
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "stillhouse",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": "none",
        "axes.labelcolor": theme.muted,
        "axes.linewidth": 1,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlecolor": theme.ink,
        "axes.titlelocation": "left",
        "axes.titlesize": 9,
        "figure.facecolor": "none",
        "grid.color": theme.grid,
        "legend.frameon": False,
        "legend.labelcolor": theme.ink,
        "savefig.facecolor": "none",
        "text.color": theme.ink,
        "text.parse_math": False,  # a row's name may hold a dollar sign
        "xtick.color": theme.grid,
        "ytick.color": theme.grid,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
    }


def wrapped(name: str, width: int = 22) -> str:
    """A name on at most three lines: a long one would leave no room to draw in."""
    lines = textwrap.wrap(name, width)
    return "\n".join(lines if len(lines) <= 3 else [*lines[:2], f"{lines[2][:-3]}..."])


def legend_room(names: Sequence[str]) -> float:
    """Inches that a `LEGEND` of these names needs beyond the room of a short one."""
    tall = max(1, -(-len(names) // LEGEND["ncols"]))
    columns = [names[first : first + tall] for first in range(0, len(names), tall)]
    lines = max((sum(1 + n.count("\n") for n in column) for column in columns), default=0)
    return LINE * max(0, lines - SHORT)
