"""Plots of a document as SVG text."""

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

from stillhouse.metrics import units
from stillhouse.metrics.known import PLOTTED
from stillhouse.metrics.scores import Score
from stillhouse.report.document import Document, Row
from stillhouse.report.drawing import (
    LEGEND,
    WIDTH,
    Drawing,
    Plot,
    as_svg,
    band,
    ladder,
    legend_room,
    marked,
    wrapped,
)
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
        svg=as_svg(document, primary, _draw_scores),
    )


def _differences(document: Document, primary: Score) -> Plot:
    facts = [f"{r.name} {_spoken(r, primary)}" for r in _students(document, primary)]
    return Plot(
        name="differences",
        title=f"Difference to {document.baseline}",
        caption="Difference seed by seed. An interval that crosses zero is not distinguished from "
        "chance."
        if any(r.differences[primary.name].low is not None for r in _students(document, primary))
        else "One seed, so no interval: a difference may be chance.",
        alt=f"{primary.label}, difference to {document.baseline}: {'; '.join(facts)}.",
        svg=as_svg(document, primary, _draw_differences),
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
        svg=as_svg(document, primary, draw),
    )


def _draw_scores(drawing: Drawing) -> Figure:
    named, name = drawing.named(), drawing.primary.name
    figure, axes = ladder([row.name for row, _, _ in named])
    for y, (row, colour, marker) in enumerate(named):
        summary = row.scores[name]
        if summary.low is not None and summary.high is not None:
            band(axes, y, drawing.shown(summary.low), drawing.shown(summary.high), colour)
        seeds = [drawing.shown(v) for v in summary.values] if len(summary.values) > 1 else []
        axes.plot(seeds, [y] * len(seeds), marker, ms=4, mfc="none", mec=colour, mew=1)
        mean = drawing.shown(summary.mean)
        text = units.number(summary.mean, drawing.primary)
        marked(axes, mean, y, text, marker=marker, colour=colour, theme=drawing.theme)
    axes.margins(x=0.12)
    axes.set_xlabel(drawing.label())
    return figure


def _draw_differences(drawing: Drawing) -> Figure:
    name = drawing.primary.name
    named = [n for n in drawing.named() if n[0].compared and name in n[0].differences]
    figure, axes = ladder([row.name for row, _, _ in named])
    axes.axvline(0, color=drawing.theme.baseline, lw=1.2)
    for y, (row, colour, marker) in enumerate(named):
        gap = row.differences[name]
        if gap.low is not None and gap.high is not None:
            band(axes, y, drawing.shown(gap.low), drawing.shown(gap.high), colour)
        mean = drawing.shown(gap.mean)
        text = units.signed(gap.mean, drawing.primary)
        marked(axes, mean, y, text, marker=marker, colour=colour, theme=drawing.theme)
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
