"""Plots of a document as SVG text, each for the light and the dark page."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from stillhouse.metrics import units
from stillhouse.metrics.known import PLOTTED
from stillhouse.metrics.scores import Score
from stillhouse.report.document import Document, Row
from stillhouse.report.drawing import LEGEND, WIDTH, Drawing, Plot, both, legend_room, wrapped
from stillhouse.report.training import loss_plots, selection_plots

LOG_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8), tuple(range(1, 10)))


def plots(document: Document) -> tuple[Plot, ...]:
    """The plots whose numbers the document has."""
    primary = document.score(document.primary or "")
    found = [] if primary is None else _score_plots(document, primary)
    return tuple(found + loss_plots(document) + selection_plots(document))


def _score_plots(document: Document, primary: Score) -> list[Plot]:
    found = [_scores(document, primary)]
    if any(primary.name in row.differences for row in document.rows if row.compared):
        found.append(_differences(document, primary))
    shown = [s for s in PLOTTED if sum(s.name in row.scores for row in document.rows) > 1][:2]
    return found + [_against(document, primary, cost) for cost in shown]


def _scores(document: Document, primary: Score) -> Plot:
    facts = [
        f"{row.name} {units.quantity(row.scores[primary.name].mean, primary)}"
        for row in _having(document, primary)
    ]
    return Plot(
        name="scores",
        title=f"{primary.label} of each model",
        caption="Small marks are seeds, the large one their mean; the band is its 95 % interval."
        if any(len(r.scores[primary.name].values) > 1 for r in _having(document, primary))
        else "One seed a model, so no interval.",
        alt=f"{primary.label} by model: {'; '.join(facts)}.",
        svg=both(document, primary, _draw_scores),
    )


def _differences(document: Document, primary: Score) -> Plot:
    facts = [f"{r.name} {_spoken(r, primary)}" for r in _students(document, primary)]
    return Plot(
        name="differences",
        title=f"Difference to {document.baseline}",
        caption="Difference seed by seed. An interval that crosses zero is not told from chance."
        if any(r.differences[primary.name].low is not None for r in _students(document, primary))
        else "One seed, so no interval: a difference may be chance.",
        alt=f"{primary.label}, difference to {document.baseline}: {'; '.join(facts)}.",
        svg=both(document, primary, _draw_differences),
    )


def _having(document: Document, primary: Score) -> list[Row]:
    return [row for row in document.rows if primary.name in row.scores]


def _students(document: Document, primary: Score) -> list[Row]:
    rows = document.rows
    return [r for r in rows if r.compared and primary.name in r.differences]


def _spoken(row: Row, score: Score) -> str:
    gap = row.differences[score.name]
    mean = units.difference(gap.mean, score)
    if gap.low is None or gap.high is None:
        return f"{mean}, no interval"
    return f"{mean}, interval {units.interval(gap.low, gap.high, score, sign=True)}"


def _against(document: Document, primary: Score, cost: Score) -> Plot:
    rows = [r for r in document.rows if cost.name in r.scores and primary.name in r.scores]
    facts = [
        f"{r.name} {units.quantity(r.scores[primary.name].mean, primary)}"
        f" at {units.quantity(r.scores[cost.name].mean, cost)}"
        for r in rows
    ]

    def draw(drawing: Drawing) -> Figure:
        return _draw_against(drawing, cost)

    return Plot(
        name=f"{primary.name}-{cost.name}".replace("_", "-"),
        title=f"{primary.label} against {units.inside(cost.label)}",
        caption="Means over seeds. Further left is cheaper, on a logarithmic scale.",
        alt=f"{primary.label} against {cost.label}: {'; '.join(facts)}.",
        svg=both(document, primary, draw),
    )


def _name(axes: Axes, y: float, lines: Sequence[str]) -> None:
    # a text a line: set in another font, the lines of one text would not end flush
    for i, line in enumerate(lines):
        place = (-8, 11 * ((len(lines) - 1) / 2 - i))
        axes.annotate(
            *(line, (0, y), place, ("axes fraction", "data"), "offset points"),
            ha="right",
            va="center",
        )


def _ladder(names: Sequence[str]) -> tuple[Figure, Axes]:
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
        _annotate(axes, mean, y, units.number(summary.mean, drawing.primary))
    axes.margins(x=0.12)
    axes.set_xlabel(drawing.label())
    return figure


def _band(
    axes: Axes, y: float, low: float | None, high: float | None, colour: str, drawing: Drawing
) -> None:
    if low is not None and high is not None:
        span = [drawing.shown(low), drawing.shown(high)]
        axes.plot(span, [y, y], color=colour, lw=7, alpha=0.28, solid_capstyle="round")


def _annotate(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (0, 8), textcoords="offset points", ha="center", fontsize=8)


def _draw_differences(drawing: Drawing) -> Figure:
    name = drawing.primary.name
    named = [n for n in drawing.named() if n[0].compared and name in n[0].differences]
    figure, axes = _ladder([row.name for row, _, _ in named])
    axes.axvline(0, color=drawing.theme.baseline, lw=1.2)
    for y, (row, colour, marker) in enumerate(named):
        gap = row.differences[name]
        _band(axes, y, gap.low, gap.high, colour, drawing)
        mean = drawing.shown(gap.mean)
        axes.plot(mean, y, marker, ms=8, mfc=colour, mec=drawing.theme.paper, mew=1.2)
        _annotate(axes, mean, y, units.signed(gap.mean, drawing.primary))
    axes.margins(x=0.12)
    label, points = units.inside(drawing.primary.label), drawing.primary.points
    axes.set_xlabel(f"Difference in {label}{f', {points}' if points else ''}")
    return figure


def _draw_against(drawing: Drawing, cost: Score) -> Figure:
    named = [n for n in drawing.named() if cost.name in n[0].scores]
    names = [wrapped(row.name) for row, _, _ in named]
    figure = Figure(figsize=(WIDTH, 3.3 + legend_room(names)), layout="constrained")
    axes, score = figure.subplots(), drawing.primary.name
    for name, (row, colour, marker) in zip(names, named, strict=True):
        x, y = row.scores[cost.name].mean, drawing.shown(row.scores[score].mean)
        style: dict[str, Any] = {"mfc": colour, "mec": drawing.theme.paper, "mew": 1.2}
        axes.plot(x, y, marker, ms=9, ls="", label=name, **style)
    _log(axes, cost)
    axes.grid()
    axes.set_axisbelow(True)
    axes.margins(0.12)
    axes.set_ylabel(units.headed(drawing.primary))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    figure.legend(**LEGEND, handletextpad=0.2)
    return figure


def _log(axes: Axes, cost: Score) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xticks(_log_ticks(low, high))
    axes.set_xlim(low, high)
    axes.xaxis.set_minor_locator(NullLocator())
    # 300 m of a unit that is itself ms reads badly
    axes.xaxis.set_major_formatter("{x:g}" if cost.symbol else EngFormatter(sep=" "))
    axes.set_xlabel(units.headed(cost))


def _log_ticks(low: float, high: float) -> list[float]:
    """Round values of each decade, as few as give three, where the range has them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in LOG_STEPS:
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) >= 3:
            break
    return ticks
