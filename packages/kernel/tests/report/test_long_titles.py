"""Plots of rows with long titles: drawn without a warning, and large enough to be read."""

import io
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from stillhouse.report.build import build
from stillhouse.report.document import Curve
from stillhouse.report.drawing import LINE, legend_room
from stillhouse.report.figures import plots
from stillhouse.report.palette import THEMES
from stillhouse.report.training import _draw_losses  # pyright: ignore[reportPrivateUsage]

from .written import Scored, Story, write_run

LONG = "students, 5x steps each, random split, narrow, no TSM, regression, DM + ADM"


def test_long_titles_leave_room_to_draw_in(tmp_path: Path) -> None:
    rows = tuple(
        Scored(row=f"{n} {LONG}", prefix=f"k{n}", accuracy=(0.5 + n / 50, 0.52 + n / 50))
        for n in range(14)
    )
    story = Story(rows=rows, method=rows[-1].row, export=False)
    recipe = write_run(story, tmp_path / "small")
    document = build(recipe, "vision/distill", tmp_path, tmp_path / "small")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn = plots(replace(document, curves=()))
    assert [str(w.message) for w in caught] == []
    assert {"scores", "accuracy-macs"} <= {plot.name for plot in drawn}


def test_a_legend_needs_room_by_the_lines_of_its_longer_column() -> None:
    assert legend_room(["a"] * 8) == 0
    assert legend_room(["a"] * 10) == pytest.approx(LINE)
    assert legend_room(["a\nb\nc", "a\nb\nc", "a"]) == pytest.approx(2 * LINE)


def test_a_panel_with_many_long_terms_keeps_room_to_draw_in() -> None:
    terms = ("student/matching", "student/adversarial", "fake/denoising", "fake/discriminating")
    columns = dict.fromkeys(("step", "loss", *terms), (0.0, 1.0, 2.0))
    curve = Curve(stage="s", row="", columns=columns)
    panels = {f"row {n}": [curve] for n in range(6)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = _draw_losses(panels, THEMES["light"])
        figure.savefig(io.StringIO(), format="svg")
