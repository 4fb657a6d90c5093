"""The plot of what was selected to train on."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from stillhouse.metrics.scores import Score
from stillhouse.report.build import build
from stillhouse.report.document import Document
from stillhouse.report.figures import plots

from .written import THREE, write_run

REFRESHES = [
    {"in_vocabulary_rate": 0.25, "selected": 4000, "step": 0},
    {"in_vocabulary_rate": 0.5, "selected": 1000, "step": 100},
]
QUANTITIES = (Score(name="in_vocabulary_rate", better="higher", unit="%", label="In vocabulary"),)


def document(tmp_path: Path, told: dict[str, Any]) -> Document:
    recipe = write_run(THREE, tmp_path / "small")
    made = build(recipe, "vision/distill", tmp_path, tmp_path / "small")
    stages = [
        replace(
            s,
            measured={**s.measured, "refreshes": told[s.name]} if s.name in told else {},
            quantities=QUANTITIES,
        )
        for s in made.stages
    ]
    return replace(made, stages=tuple(stages))


def test_nothing_selected_is_no_plot(tmp_path: Path) -> None:
    assert "selections" not in {p.name for p in plots(document(tmp_path, {}))}


def test_each_quantity_is_a_panel_with_a_line_a_training(tmp_path: Path) -> None:
    taught = {"kd-0": REFRESHES, "kd-1": REFRESHES, "dkd-0": [{"selected": 7, "step": 0}]}
    made = document(tmp_path, taught)
    plot = next(p for p in plots(made) if p.name == "selections")
    texts = [t.strip() for t in ElementTree.fromstring(plot.svg).itertext()]
    for text in ("Selected", "In vocabulary, %", "student + kd", "student + dkd"):
        assert texts.count(text) == 1  # two seeds share an entry of the legend
    assert "student + kd from 4000 to 1000" in plot.alt
    assert "student + kd from 25.00 % to 50.00 %" in plot.alt
    assert "student + dkd from 7 to 7; in vocabulary" in plot.alt
    assert plot.wide


def test_a_training_belongs_to_the_row_that_evaluates_what_was_converted(tmp_path: Path) -> None:
    made = document(tmp_path, {"kd-0": REFRESHES})
    stages = {s.name: s for s in made.stages}
    source = stages["kd-0-scores"].inputs["student"]
    merged = replace(
        stages["kd-0"], name="merged", kind="Convert", measured={}, inputs={"student": source}
    )
    scores = replace(stages["kd-0-scores"], inputs={"student": replace(source, ref="merged.model")})
    stages |= {"merged": merged, "kd-0-scores": scores}
    curves = [replace(c, row="") if c.stage == "kd-0" else c for c in made.curves]
    made = replace(made, stages=tuple(stages.values()), curves=tuple(curves))
    drawn = {plot.name: plot for plot in plots(made)}
    assert "student + kd from 4000 to 1000" in drawn["selections"].alt
    assert "kd-0" not in drawn["losses"].alt
