"""Plots of a document as SVG text, drawn without pyplot, each for the light and the dark page.

Text stays text, in the reader's own font; ids are salted and dates left out: the same document is
the same bytes.
"""

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from stillhouse.report import units
from stillhouse.report.document import Curve, Document, Row, Score
from stillhouse.report.palette import MODES, THEMES, Mode, Theme, colours, markers

WIDTH = 4.3  # inches; at 72 points each the labels stay readable on a phone
FONTS = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
COSTS = ("macs", "latency_b1_ms", "parameters")
LOG_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8), tuple(range(1, 10)))
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
        unit = f", {self.primary.unit}" if self.primary.unit else ""
        better = "lower" if self.primary.lower_is_better else "higher"
        return f"{self.primary.label}{unit} ({better} is better)"

    def shown(self, value: float) -> float:
        return 100 * value if self.primary.unit == "%" else value


def plots(document: Document) -> tuple[Plot, ...]:
    """The plots whose numbers the document has."""
    primary = document.score(document.primary or "")
    found = [] if primary is None else _score_plots(document, primary)
    return tuple(found + _loss_plots(document))


def _score_plots(document: Document, primary: Score) -> list[Plot]:
    found = [_scores(document, primary)]
    if any(primary.name in row.differences for row in document.rows if row.standing == "student"):
        found.append(_differences(document, primary))
    shown = [n for n in COSTS if sum(n in row.scores for row in document.rows) > 1][:2]
    return found + [_against(document, primary, name) for name in shown]


def _scores(document: Document, primary: Score) -> Plot:
    facts = [
        f"{row.name} {units.quantity(row.scores[primary.name].mean, primary.name)}"
        for row in _having(document, primary)
    ]
    return Plot(
        name="scores",
        title=f"{primary.label} of each model",
        caption="Small marks are seeds, the large one their mean; the band is its 95 % interval."
        if any(len(r.scores[primary.name].values) > 1 for r in _having(document, primary))
        else "One seed a model, so no interval.",
        alt=f"{primary.label} by model: {'; '.join(facts)}.",
        svg=_both(document, primary, _draw_scores),
    )


def _differences(document: Document, primary: Score) -> Plot:
    facts = [f"{r.name} {_spoken(r, primary.name)}" for r in _students(document, primary)]
    return Plot(
        name="differences",
        title=f"Difference to {document.baseline}",
        caption="Difference seed by seed. An interval that crosses zero is not told from chance."
        if any(r.differences[primary.name].low is not None for r in _students(document, primary))
        else "One seed, so no interval: a difference may be chance.",
        alt=f"{primary.label}, difference to {document.baseline}: {'; '.join(facts)}.",
        svg=_both(document, primary, _draw_differences),
    )


def _having(document: Document, primary: Score) -> list[Row]:
    return [row for row in document.rows if primary.name in row.scores]


def _students(document: Document, primary: Score) -> list[Row]:
    rows = document.rows
    return [r for r in rows if r.standing == "student" and primary.name in r.differences]


def _spoken(row: Row, name: str) -> str:
    gap = row.differences[name]
    mean = units.difference(gap.mean, name)
    if gap.low is None or gap.high is None:
        return f"{mean}, no interval"
    return f"{mean}, interval {units.interval(gap.low, gap.high, name, sign=True)}"


def _against(document: Document, primary: Score, cost: str) -> Plot:
    label = units.unit(cost).label
    rows = [r for r in document.rows if cost in r.scores and primary.name in r.scores]
    facts = [
        f"{r.name} {units.quantity(r.scores[primary.name].mean, primary.name)}"
        f" at {units.quantity(r.scores[cost].mean, cost)}"
        for r in rows
    ]

    def draw(drawing: Drawing) -> Figure:
        return _draw_against(drawing, cost)

    return Plot(
        name=f"{primary.name}-{cost}".replace("_", "-"),
        title=f"{primary.label} against {units.inside(label)}",
        caption="Means over seeds. Further left is cheaper, on a logarithmic scale.",
        alt=f"{primary.label} against {label}: {'; '.join(facts)}.",
        svg=_both(document, primary, draw),
    )


def _both(document: Document, primary: Score, draw: Callable[[Drawing], Figure]) -> dict[Mode, str]:
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


def _name(axes: Axes, y: float, lines: Sequence[str]) -> None:
    # a text a line: set in another font, the lines of one text would not end flush
    for i, line in enumerate(lines):
        place = (-8, 11 * ((len(lines) - 1) / 2 - i))
        axes.annotate(
            *(line, (0, y), place, ("axes fraction", "data"), "offset points"),
            ha="right",
            va="center",
        )


def _wrapped(name: str, width: int = 22) -> str:
    """A name on at most three lines: a long one would leave no room to draw in."""
    lines = textwrap.wrap(name, width)
    return "\n".join(lines if len(lines) <= 3 else [*lines[:2], f"{lines[2][:-3]}..."])


def _ladder(names: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes with a named line a row, the first on top."""
    figure = Figure(figsize=(WIDTH, 0.85 + 0.46 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), [""] * len(names))
    for y, name in enumerate(names):
        _name(axes, y, _wrapped(name).split("\n"))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def _draw_scores(drawing: Drawing) -> Figure:
    named, name = drawing.named(), drawing.primary.name
    figure, axes = _ladder([row.name for row, _, _ in named])
    for y, (row, colour, marker) in enumerate(named):
        summary = row.scores[name]
        _band(axes, y, summary.low, summary.high, colour, drawing)
        seeds = [drawing.shown(v) for v in summary.values] if len(summary.values) > 1 else []
        axes.plot(seeds, [y] * len(seeds), marker, ms=4, mfc="none", mec=colour, mew=1)
        mean = drawing.shown(summary.mean)
        axes.plot(mean, y, marker, ms=8, mfc=colour, mec=drawing.theme.paper, mew=1.2)
        _say(axes, mean, y, units.number(summary.mean, name))
    axes.margins(x=0.12)
    axes.set_xlabel(drawing.label())
    return figure


def _band(
    axes: Axes, y: float, low: float | None, high: float | None, colour: str, drawing: Drawing
) -> None:
    if low is not None and high is not None:
        span = [drawing.shown(low), drawing.shown(high)]
        axes.plot(span, [y, y], color=colour, lw=7, alpha=0.28, solid_capstyle="round")


def _say(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (0, 8), textcoords="offset points", ha="center", fontsize=8)


def _draw_differences(drawing: Drawing) -> Figure:
    name = drawing.primary.name
    named = [n for n in drawing.named() if n[0].standing == "student" and name in n[0].differences]
    figure, axes = _ladder([row.name for row, _, _ in named])
    axes.axvline(0, color=drawing.theme.baseline, lw=1.2)
    for y, (row, colour, marker) in enumerate(named):
        gap = row.differences[name]
        _band(axes, y, gap.low, gap.high, colour, drawing)
        mean = drawing.shown(gap.mean)
        axes.plot(mean, y, marker, ms=8, mfc=colour, mec=drawing.theme.paper, mew=1.2)
        _say(axes, mean, y, units.signed(gap.mean, name))
    axes.margins(x=0.12)
    points = units.unit(name).points
    axes.set_xlabel(
        f"Difference in {drawing.primary.label.lower()}{f', {points}' if points else ''}"
    )
    return figure


def _draw_against(drawing: Drawing, cost: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes, name = figure.subplots(), drawing.primary.name
    for row, colour, marker in drawing.named():
        if cost in row.scores:
            x, y = row.scores[cost].mean, drawing.shown(row.scores[name].mean)
            style: dict[str, Any] = {"mfc": colour, "mec": drawing.theme.paper, "mew": 1.2}
            axes.plot(x, y, marker, ms=9, ls="", label=_wrapped(row.name), **style)
    _log(axes, cost)
    axes.grid()
    axes.set_axisbelow(True)
    axes.margins(0.12)
    axes.set_ylabel(
        f"{drawing.primary.label}{f', {drawing.primary.unit}' if drawing.primary.unit else ''}"
    )
    axes.yaxis.set_major_locator(MaxNLocator(5))
    figure.legend(loc="outside lower center", ncols=2, fontsize=8.5, handletextpad=0.2)
    return figure


def _log(axes: Axes, cost: str) -> None:
    unit = units.unit(cost)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xticks(_log_ticks(low, high))
    axes.set_xlim(low, high)
    axes.xaxis.set_minor_locator(NullLocator())
    # 300 m of a unit that is itself ms reads badly
    axes.xaxis.set_major_formatter("{x:g}" if unit.symbol else EngFormatter(sep=" "))
    axes.set_xlabel(f"{unit.label}{f', {unit.symbol}' if unit.symbol else ''}")


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values of each decade, as few as give three, where the range has them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in LOG_STEPS:
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) >= 3:
            break
    return ticks


def _loss_plots(document: Document) -> list[Plot]:
    panels: dict[str, list[Curve]] = {}
    for curve in document.curves:
        panels.setdefault(curve.row or curve.stage, []).append(curve)
    if not panels:
        return []
    ends = [f"{name} ends at {_last(curves[0]):.3g}" for name, curves in panels.items()]
    score = Score(name="loss", label="Loss", unit="", lower_is_better=True, cost=False)

    def draw(drawing: Drawing) -> Figure:
        return _draw_losses(panels, drawing.theme)

    return [
        Plot(
            name="losses",
            title="Loss while training",
            caption="A line a seed. Panels differ in their terms: heights do not compare.",
            alt=f"Training loss by step: {'; '.join(ends)}.",
            svg=_both(document, score, draw),
            wide=True,
        )
    ]


def _last(curve: Curve) -> float:
    values = curve.columns.get("loss") or list(curve.columns.values())[-1]
    return next((v for v in reversed(values) if v is not None), math.nan)


def _draw_losses(panels: Mapping[str, Sequence[Curve]], theme: Theme) -> Figure:
    across = 3 if len(panels) == 3 or len(panels) > 4 else min(2, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(2 * WIDTH, 2.35 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, curves) in zip(grid.flat, panels.items(), strict=False):
        _draw_panel(axes, curves, theme)
        axes.set_title(_wrapped(name, 40))
    return figure


def _draw_panel(axes: Axes, curves: Sequence[Curve], theme: Theme) -> None:
    terms = [name for name in curves[0].columns if name not in ("step", "loss")]
    shown = ["loss", *(terms if len(terms) > 1 else [])]
    for i, term in enumerate(shown):
        colour = theme.ink if term == "loss" else theme.series[(i - 1) % len(theme.series)]
        for curve in curves:
            steps, values = curve.columns["step"], curve.columns.get(term, ())
            drawn = [(s, v) for s, v in zip(steps, values, strict=False) if v is not None]
            style = STYLES[i % len(STYLES)]
            label = term if curve is curves[0] else None
            axes.plot(
                *zip(*drawn, strict=True), style, color=colour, lw=1.3, alpha=0.75, label=label
            )
    axes.grid(axis="y")
    axes.set_xlabel("Step")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if len(shown) > 1:
        axes.legend(fontsize=8, loc="upper right", ncols=min(3, len(shown)))
