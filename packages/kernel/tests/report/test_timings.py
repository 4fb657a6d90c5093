"""What a report says of latencies: two models that were timed apart bear no ratio by themselves."""

import dataclasses
import json
from pathlib import Path

import pytest

from stillhouse.metrics import Latencies
from stillhouse.recipe import Recipe
from stillhouse.report.build import build
from stillhouse.report.cards import cards
from stillhouse.report.document import Document
from stillhouse.stages import Evaluate

from .written import COSTS, ONE, SPEED, write_run

X = "\N{MULTIPLICATION SIGN}"


def exported() -> Evaluate:
    lines = {"teacher, torch": "teacher", "student, torch": "student", "student, int8": "int8"}
    roles = {"teacher": "teacher.teacher", "student": "kd-0.student", "int8": "export.model"}
    return Evaluate(
        name="shipped",
        metrics=(Latencies(lines=lines, batches=(1,)),),
        inputs={"data": "data.test", **roles},
    )


def document(root: Path, *, turns: dict[str, float] | None = None, study: bool = True) -> Document:
    """A run whose student takes fewer MACs; `turns` are the latencies of the study, if it ran."""
    folder = root / "small"
    recipe: Recipe = write_run(ONE, folder)
    if study:
        stages = (*recipe.stages, exported())
        recipe = dataclasses.replace(recipe, stages=stages, studies={"As exported": ("shipped",)})
    if turns is not None:
        record = {"stage": "shipped", "kind": "Evaluate", "key": "k", "inputs": {}, "outputs": {}}
        (folder / "shipped").mkdir()
        (folder / "shipped" / "stage.json").write_text(json.dumps(record))
        scores = {f"{line}/latency_b1_ms": value for line, value in turns.items()}
        (folder / "shipped.scores.json").write_text(json.dumps(scores))
    return build(recipe, "vision/distill", root, folder)


def latency_note(made: Document) -> str:
    return next(card.note for card in cards(made) if card.label == "Latency, batch 1")


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine did other things while the students were timed."""
    monkeypatch.setitem(SPEED["student"], "latency_b1_ms", 201 * 8.42)


def test_timings_apart_that_contradict_the_macs_claim_nothing(tmp_path: Path, busy: None) -> None:
    made = document(tmp_path, study=False)
    assert made.costlier == ()
    assert latency_note(made) == "teacher 8.42 ms"


def test_timings_apart_that_agree_with_the_macs_are_compared(tmp_path: Path) -> None:
    made = document(tmp_path)
    assert made.costlier == ()
    assert latency_note(made) == f"teacher 8.42 ms (2.7{X})"


def test_timings_of_two_environments_claim_nothing(tmp_path: Path) -> None:
    document(tmp_path)
    file = tmp_path / "small" / "teacher-scores.run.json"
    record = json.loads(file.read_text())
    record["environment"]["cpu"] = "Another processor"
    file.write_text(json.dumps(record))
    made = build(ONE.recipe(), "vision/distill", tmp_path, tmp_path / "small")
    assert latency_note(made) == "teacher 8.42 ms"
    file.unlink()
    made = build(ONE.recipe(), "vision/distill", tmp_path, tmp_path / "small")
    assert latency_note(made) == "teacher 8.42 ms"


def test_a_study_in_turns_says_what_is_faster(tmp_path: Path, busy: None) -> None:
    turns = {"teacher, torch": 8.0, "student, torch": 4.0, "student, int8": 2.0}
    made = document(tmp_path, turns=turns)
    assert {row.name: dict(row.timed) for row in made.rows} == {
        "teacher": {"latency_b1_ms": 8.0},
        "student": {},
        "student + kd": {"latency_b1_ms": 4.0},
    }
    assert made.costlier == ()
    # both values and the ratio are of the study: 8 ms against 4, not 8.42 against 1692
    card = next(card for card in cards(made) if card.label == "Latency, batch 1")
    assert (card.value, card.note) == ("4.00 ms", f"teacher 8.00 ms (2.0{X}, in turns)")


def test_a_study_in_turns_says_what_is_slower_though_it_takes_fewer_macs(tmp_path: Path) -> None:
    turns = {"teacher, torch": 4.0, "student, torch": 6.0, "student, int8": 2.0}
    made = document(tmp_path, turns=turns)
    assert made.costlier == (f"More latency, batch 1 than the teacher: student + kd 1.5{X}.",)


def test_the_headline_speaks_of_time_where_nothing_else_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for who in COSTS:
        monkeypatch.setitem(COSTS, who, {})
    turns = {"teacher, torch": 8.0, "student, torch": 2.0}
    made = document(tmp_path, turns=turns)
    assert made.headline.detail[-1] == ("The student needs 25 % of the teacher's latency, batch 1.")
    apart = document(tmp_path / "apart", study=False)
    assert "needs" not in " ".join(apart.headline.detail)
