"""What every plot of a report shares: a drawing as SVG text, in the colours of the reader's mode.

Drawn without pyplot. Text stays text, in the reader's own font; ids are salted and dates left out:
the same document is the same bytes.
"""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stillhouse.metrics import units
from stillhouse.metrics.scores import Score
from stillhouse.report.document import Document, Row
from stillhouse.report.palette import MODES, THEMES, Theme, colours, markers, pairs

WIDTH = 4.3  # inches; at 72 points each the labels stay readable on a phone
FONTS = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
LEGEND: Mapping[str, Any] = {"loc": "outside lower center", "ncols": 2, "fontsize": 8.5}
SHORT = 4  # lines of a legend's column that a plot has room for
LINE = 0.17  # inches of one
STYLES = ("-", "--", ":", "-.")
# measured in matplotlib's own font, set in the reader's
FAMILY = " font-family: 'DejaVu Sans';"
# of what matplotlib would write, no date and no program: the same document is the same bytes
PLAIN = {"Date": None, "Creator": None, "Format": None, "Type": None}
TAG = re.compile(r"<[a-z/][^<>]*>")  # in texts these signs are escaped
LONG = re.compile(r"-?\b\d+\.\d{3,}\b")


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot in the reader's mode, with a text for a reader who cannot see it."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str
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


def as_svg(document: Document, primary: Score, draw: Callable[[Drawing], Figure]) -> str:
    """What `draw` makes of a document, as SVG text."""

    def themed(theme: Theme) -> Figure:
        return draw(Drawing(document=document, primary=primary, theme=theme))

    return adaptive(themed)


def adaptive(draw: Callable[[Theme], Figure]) -> str:
    """What `draw` draws in the light colours, as SVG text that takes the dark ones for a reader who
    has set them.
    """
    theme = THEMES["light"]
    with mpl.rc_context(_style(theme)):
        text = io.StringIO()
        draw(theme).savefig(text, format="svg", metadata=PLAIN)
    return following(compact(text.getvalue()))


def compact(svg: str) -> str:
    """The SVG that matplotlib wrote in fewer bytes: coordinates to 0.01 points, a path a line."""
    return TAG.sub(lambda tag: LONG.sub(_rounded, " ".join(tag[0].split())), svg)


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")


def following(svg: str) -> str:
    """The SVG with a background, the reader's font, and rules that turn the light mode's colours
    into the dark one's; a program that knows no rules shows the light ones.
    """
    rules = [
        f'[style*="{what}: {light}"]{{{what}:{dark}!important}}'
        for light, dark in pairs().items()
        for what in ("fill", "stroke")
        if f"{what}: {light}" in svg
    ]
    light, dark = (THEMES[mode].paper for mode in MODES)
    style = (
        f"svg{{background:{light}}}text{{font-family:{FONTS}}}"
        f"@media screen and (prefers-color-scheme:dark){{svg{{background:{dark}}}{''.join(rules)}}}"
    )
    plain = TAG.sub(lambda tag: tag[0].replace(FAMILY, ""), svg)
    return plain.replace("</style>", f"{style}</style>", 1)


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


def _name(axes: Axes, y: float, lines: Sequence[str]) -> None:
    # a text a line: set in another font, the lines of one text would not end flush
    for i, line in enumerate(lines):
        place = (-8, 11 * ((len(lines) - 1) / 2 - i))
        axes.annotate(
            *(line, (0, y), place, ("axes fraction", "data"), "offset points"),
            ha="right",
            va="center",
        )


def ladder(names: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes with a named line a row, the first on top."""
    figure = Figure(figsize=(WIDTH, 0.85 + 0.46 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), [""] * len(names))
    for y, name in enumerate(names):
        _name(axes, y, wrapped(name).split("\n"))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def band(axes: Axes, y: float, low: float, high: float, colour: str) -> None:
    """An interval on the line `y` of a `ladder`."""
    axes.plot([low, high], [y, y], color=colour, lw=7, alpha=0.28, solid_capstyle="round")


def marked(
    axes: Axes, x: float, y: float, text: str, *, marker: str, colour: str, theme: Theme
) -> None:
    """A value on the line `y` of a `ladder`, with its text above."""
    axes.plot(x, y, marker, ms=8, mfc=colour, mec=theme.paper, mew=1.2)
    axes.annotate(text, (x, y), (0, 8), textcoords="offset points", ha="center", fontsize=8)
