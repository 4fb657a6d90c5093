"""Plots of what happened while training: losses, and what was selected to train on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stillhouse.metrics import units
from stillhouse.metrics.known import guessed
from stillhouse.metrics.scores import Score
from stillhouse.report.document import Curve, Document
from stillhouse.report.drawing import (
    LEGEND,
    STYLES,
    WIDTH,
    Drawing,
    Plot,
    as_svg,
    legend_room,
    wrapped,
)
from stillhouse.report.palette import Theme, colours

TITLES = 100  # characters of a title across the page


def loss_plots(document: Document) -> list[Plot]:
    """Loss and its terms by step, a panel a row."""
    panels: dict[str, list[Curve]] = {}
    rows = _trained_rows(document) | {c.stage: c.row for c in document.curves if c.row}
    for curve in document.curves:
        panels.setdefault(rows.get(curve.stage, curve.stage), []).append(curve)
    if not panels:
        return []
    ends = [f"{name} ends at {_last(curves[0]):.3g}" for name, curves in panels.items()]
    score = Score(name="loss", better="lower")

    def draw(drawing: Drawing) -> Figure:
        return _draw_losses(panels, drawing.theme)

    return [
        Plot(
            name="losses",
            title="Loss while training",
            caption="A line a seed. Panels differ in their terms: heights do not compare.",
            alt=f"Training loss by step: {'; '.join(ends)}.",
            svg=as_svg(document, score, draw),
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
        _draw_panel(axes, curves, theme, room=TITLES // across)
        axes.set_title(wrapped(name, TITLES // across))
    return figure


def _draw_panel(axes: Axes, curves: Sequence[Curve], theme: Theme, *, room: int) -> None:
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
        # a legend wider than its panel would leave no room for any; a line and its gaps take six
        fitting = room // (6 + max(map(len, shown)))
        columns = max(1, min(3, len(shown), fitting))
        axes.legend(fontsize=8, loc="upper right", ncols=columns)


@dataclass(frozen=True, kw_only=True)
class _Selection:
    """What one training recorded of its choices: a value a refresh, by quantity."""

    row: str
    steps: tuple[float, ...]
    end: float  # the last step, up to which the last choice held
    values: Mapping[str, tuple[float, ...]]


def selection_plots(document: Document) -> list[Plot]:
    """What was chosen to train on, by step: a panel a quantity, a line a training."""
    found = _selections(document)
    names = dict.fromkeys(name for one in found for name in one.values)
    if not names:
        return []
    declared = {s.name: s for stage in document.stages for s in stage.quantities}
    quantities = [declared.get(name) or guessed(name) for name in names]
    ends = [_ends(found, quantity) for quantity in quantities]
    score = Score(name="selected", better="neither")

    def draw(drawing: Drawing) -> Figure:
        return _draw_selections(found, quantities, drawing)

    return [
        Plot(
            name="selections",
            title="What was selected",
            caption="A line a seed: what each training chose to learn from, from that step on.",
            alt=f"Selections by step: {'; '.join(ends)}.",
            svg=as_svg(document, score, draw),
            wide=True,
        )
    ]


def _selections(document: Document) -> list[_Selection]:
    rows = _trained_rows(document)
    found: list[_Selection] = []
    for stage in document.stages:
        refreshes = stage.measured.get("refreshes") or []
        recorded: set[str] = set(refreshes[0]) if refreshes else set()
        # how many first, which every training records: the legend is read off its panel
        names = ["selected", *sorted(recorded - {"step", "selected"})] if recorded else []
        if names:
            found.append(
                _Selection(
                    row=rows.get(stage.name, stage.name),
                    steps=tuple(float(entry["step"]) for entry in refreshes),
                    end=float(stage.measured.get("steps", refreshes[-1]["step"])),
                    values={n: tuple(float(entry[n]) for entry in refreshes) for n in names},
                )
            )
    return found


def _trained_rows(document: Document) -> dict[str, str]:
    """The row that evaluates what a stage made, directly or converted since."""
    entries = {stage.name: stage for stage in document.stages}
    rows: dict[str, str] = {}
    for row in document.rows:
        for name in row.stages:
            while name in entries and "student" in entries[name].inputs:
                name = entries[name].inputs["student"].ref.partition(".")[0]
                rows[name] = row.name
    return rows


def _ends(found: Sequence[_Selection], quantity: Score) -> str:
    label, name = units.inside(quantity.label), quantity.name
    ends = [
        f"{one.row} from {_written(one.values[name][0], quantity)} to "
        f"{_written(one.values[name][-1], quantity)}"
        for one in {one.row: one for one in reversed(found) if name in one.values}.values()
    ]
    return f"{label}: {', '.join(reversed(ends))}"


def _written(value: float, quantity: Score) -> str:
    return units.quantity(value, quantity) if quantity.symbol else f"{value:.4g}"


def _draw_selections(
    found: Sequence[_Selection], quantities: Sequence[Score], drawing: Drawing
) -> Figure:
    rows, theme = drawing.document.rows, drawing.theme
    colour = dict(zip((row.name for row in rows), colours(rows, theme), strict=True))
    shown = list(dict.fromkeys(one.row for one in found))
    room = legend_room([wrapped(name, TITLES // 2) for name in shown])
    figure = Figure(figsize=(2 * WIDTH, 2.9 + room), layout="constrained")
    grid = figure.subplots(1, len(quantities), squeeze=False)
    for axes, quantity in zip(grid[0], quantities, strict=True):
        for one in (one for one in found if quantity.name in one.values):
            style, ink = STYLES[shown.index(one.row) % len(STYLES)], colour.get(one.row, theme.ink)
            _steps(axes, one, quantity, style=style, colour=ink)
        axes.set_title(units.headed(quantity))
        axes.grid(axis="y")
        axes.set_xlabel("Step")
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    handles, labels = figure.axes[0].get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    if len(once) > 1:
        figure.legend(once.values(), once, **LEGEND)
    return figure


def _steps(axes: Axes, one: _Selection, quantity: Score, *, style: str, colour: str) -> None:
    values = [units.shown(value, quantity) for value in one.values[quantity.name]]
    axes.plot(
        *((*one.steps, one.end), (*values, values[-1]), style),
        drawstyle="steps-post",
        color=colour,
        lw=1.3,
        alpha=0.8,
        label=wrapped(one.row, TITLES // 2),
    )
