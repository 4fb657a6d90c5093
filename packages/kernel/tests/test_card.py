"""The scores on an exported student's card: by their labels, with unit and direction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stillhouse.artifact import Built, Model
from stillhouse.card import Card, model_card, scores_record
from stillhouse.metrics import Lines, Metric
from stillhouse.metrics.known import ACCURACY
from stillhouse.metrics.scores import Score
from stillhouse.stages import Evaluate
from stillhouse.work import Work

from .toys import Net, toy_context

STORED: dict[str, Any] = {
    "inputs": {}, "outputs": {}, "parameters": 145, "macs": 1748, "opset": 18,
    "checked_samples": 2, "agrees_within": 1e-3,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Fixed(Metric):
    values: Mapping[str, float]
    declared: tuple[Score, ...]

    def __call__(self, models: Any, data: Any, *, work: Work) -> Mapping[str, float]:
        return self.values

    def scores(self) -> Sequence[Score]:
        return self.declared


ROLES = Fixed(
    values={"fid": 12.5, "accuracy": 0.875},
    declared=(Score(name="fid", better="lower", label="FID"), ACCURACY),
)


def evaluated(folder: Path, *metrics: Metric) -> Mapping[str, float]:
    stage = Evaluate(name="kd-0-scores", metrics=metrics, inputs={}, data=())
    return stage.run({}, toy_context(folder)).outputs["scores"].open()


def table(scores: Mapping[str, float]) -> list[str]:
    """The lines of the card's section of scores."""
    built = Built(spec=Model(build=Net, kwargs={"width": 4}), module=Net(4))
    card = Card(title="t", task="image-classification", paper="p")
    text = model_card(card, None, built, {**STORED, **scores_record(scores)})
    return text.partition("## Scores\n\n")[2].strip().splitlines()


def test_scores_of_one_model(tmp_path: Path) -> None:
    assert table(evaluated(tmp_path, ROLES)) == [
        "One evaluation of these weights:",
        "",
        "| score | this model |",
        "|---|---|",
        "| FID (lower is better) | 12.50 |",
        "| Accuracy, % | 87.50 |",
        "",
        "Seeds, intervals, the baseline and the lineage are in the report of the run.",
    ]


def test_scores_of_a_table_whose_rows_have_a_slash(tmp_path: Path) -> None:
    lines = table(evaluated(tmp_path, Lines(lines={"W8/A8": ROLES, "floats": ROLES})))
    assert lines[2:6] == [
        "| score | W8/A8 | floats |",
        "|---|---|---|",
        "| FID (lower is better) | 12.50 | 12.50 |",
        "| Accuracy, % | 87.50 | 87.50 |",
    ]


@pytest.mark.parametrize("stored", [{"accuracy": 0.875}, {"student/accuracy": 0.875}])
def test_scores_without_a_declaration_are_read_by_their_names(stored: dict[str, float]) -> None:
    assert table(stored)[-3] == "| Accuracy, % | 87.50 |"


def test_no_scores_name_the_report() -> None:
    assert table({}) == [
        "Seeds, intervals, the baseline and the lineage are in the report of the run."
    ]
