"""The recipe language/arte: its stages at every scale, and what its settings refuse."""

from typing import Any

import pytest

from stillhouse.errors import StillhouseError
from stillhouse.objectives.objective import Composed
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Convert, Make, Train
from stillhouse_language.arte.objectives import Dpo
from stillhouse_language.arte.pairing import BuildPairs
from stillhouse_language.arte.tailoring import ChooseExamples, WriteExamples

NAME = "language/arte"


def recipe(scale: str = "tiny", **settings: Any) -> Any:
    return make_recipe(NAME, make_settings(NAME, scale, settings))


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_every_row_is_tuned_alike_but_for_its_data(scale: str) -> None:
    made = recipe(scale)
    rows = make_settings(NAME, scale).rows  # pyright: ignore
    students = [made.stage(f"{row}-0") for row in rows]
    for row, student in zip(rows, students, strict=True):
        assert isinstance(student, Train)
        assert isinstance(student.objective, Composed)
        assert (student.objective, student.setup()) == (students[0].objective, students[0].setup())
        assert student.inputs["data"] == f"{row}-data.train"
        assert student.inputs["student"] == students[0].inputs["student"]
    assert made.method == "ARTE"
    assert made.baseline == "best of the original teacher's drafts"


def test_the_reverse_teacher_differs_in_its_pairs_alone() -> None:
    made = recipe()
    aligned, reverse = made.stage("aligned-adapters"), made.stage("reversed-adapters")
    assert isinstance(aligned, Train)
    assert isinstance(aligned.objective, Dpo)
    assert (aligned.objective, aligned.steps, aligned.bases) == (
        reverse.objective, reverse.steps, reverse.bases
    )  # fmt: skip
    assert (aligned.inputs["data"], reverse.inputs["data"]) == (
        "pairs.train",
        "reversed-pairs.train",
    )
    swapped = made.stage("reversed-pairs")
    assert isinstance(swapped, Make)
    assert isinstance(swapped.make, BuildPairs)
    assert swapped.make.reverse


def test_a_teacher_from_outside_writes_or_chooses() -> None:
    small = recipe("small")
    assert isinstance(small.stage("teacher"), Convert)
    assert "student" not in {stage.name for stage in small.stages}  # one network is both
    assert isinstance(small.stage("arte-data").make, ChooseExamples)
    assert "reference" not in small.stage("unaligned-data").inputs
    assert "chooses among them" in small.caution
    paper = recipe("paper")
    assert isinstance(paper.stage("arte-data").make, WriteExamples)
    assert paper.stage("teacher").inputs == {"weights": "hub:meta-llama/Meta-Llama-3-70B-Instruct"}
    assert paper.stage("question-data").inputs["original"] == "teacher.model"
    remote = recipe(
        "paper", drafts="endpoint", endpoint="http://127.0.0.1:1/v1", endpoint_model="m"
    )
    assert "teacher" not in remote.stage("drafts").inputs


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"question_pairs": 5}, "question_pairs must be <= 4"),
        ({"items": 25}, "items must be <= validation, 24"),
        ({"shots": "0,4"}, "shots must be 0 to examples, 3"),
        ({"student": "file:x"}, "give both teacher and student"),
        ({"tasks": "gsm8k"}, "know arithmetic alone"),
        ({"tasks": "a b"}, "letters, digits"),
        ({"rows": "arte"}, "'original' is always one of them"),
        ({"drafts": "endpoint"}, "needs endpoint and endpoint_model"),
        ({"drafts": "data"}, "pool must be >= 32"),
        ({"beta": 0}, "beta"),
    ],
)
def test_what_does_not_fit_is_one_line(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(StillhouseError, match=reason) as error:
        recipe(**settings)
    assert "\n" not in str(error.value)
