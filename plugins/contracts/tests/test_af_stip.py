from collections.abc import Iterator
from typing import Any

import pytest

from stillhouse.data.sampling import NoData
from stillhouse.errors import BadSetting, StillhouseError
from stillhouse.recipe import Recipe, Stage
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Convert, Train
from stillhouse_contracts.counts import FitCounts
from stillhouse_contracts.lessons import Lesson
from stillhouse_contracts.recipes.af_stip import ROWS
from stillhouse_contracts.recipes.af_stip_lessons import lesson
from stillhouse_contracts.recipes.af_stip_settings import STUDENTS, AfStipSettings

NAME = "contracts/af_stip"
DATA_FREE = ("noise", "generator")


def recipe(scale: str = "tiny", **settings: Any) -> Recipe:
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def behind(made: Recipe, stage: Stage, through: tuple[str, ...] = ()) -> Iterator[str]:
    """What a stage reads, and what these read, but not behind the stages in `through`."""
    for ref in stage.inputs.values():
        yield ref
        name = ref.partition(".")[0]
        if name not in through and any(each.name == name for each in made.stages):
            yield from behind(made, made.stage(name), through)


@pytest.mark.parametrize("name", DATA_FREE)
def test_no_contract_reaches_a_data_free_student_but_through_its_teacher(name: str) -> None:
    for scale in ("tiny", "small"):
        made = recipe(scale)
        student = made.stage(f"{name}-0")
        assert isinstance(student, Train)
        assert isinstance(student.data, NoData)
        assert list(behind(made, student, through=("teacher",))) == ["teacher.teacher"]
    # a table learned from contracts is one more thing the student is given, and nothing else is
    made = recipe("paper")
    reads = set(behind(made, made.stage(f"{name}-0"), through=("teacher", "embedding")))
    assert reads == {"teacher.teacher", "embedding.model"}


def test_other_students_are_given_what_the_notes_say() -> None:
    made = recipe()
    reads = {name: made.stage(f"{name}-0").inputs for name in STUDENTS}
    assert reads["public"] == {"data": "data.public", "teacher": "teacher.teacher"}
    assert reads["perturbed"] == {"data": "data.train", "teacher": "teacher.teacher"}
    assert reads["kd"] == reads["perturbed"]
    for name in ("supervised", "textcnn", "bilstm", "logistic"):
        assert reads[name] == {"data": "data.train"}
    notes = " ".join(made.notes)
    assert "NOT data-free" in notes
    assert "not data-free" in ROWS["perturbed"]
    assert "econstruction" in made.reference


def test_stages_and_rows_of_the_report() -> None:
    made = recipe(seeds=2)
    assert list(made.rows) == ["teacher", *(ROWS[name] for name in STUDENTS)]
    kinds = {title: row.kind for title, row in made.rows.items()}
    assert kinds[ROWS["supervised"]] == "baseline"
    assert made.method == ROWS["noise"]
    assert made.rows[ROWS["kd"]].stages == ("kd-0-scores", "kd-1-scores")
    assert made.rows[ROWS["logistic"]].stages == ("logistic-0-scores",)
    assert made.control is not None
    assert made.control.row == "mean"
    assert made.stage("export").inputs["student"] == "public-0.student"
    one = recipe(seeds=1)
    for stage in one.stages:
        assert made.stage(stage.name) == stage, "a seed more leaves what is there"


def test_the_scored_output_of_the_generators_training_is_the_student() -> None:
    made = recipe()
    assert made.stage("generator-0-scores").inputs["student"] == "generator-0.student"


def test_studies_can_be_left_out() -> None:
    made = recipe(folds=0, novel="", students=["supervised", "kd"], method="kd", exported="kd")
    assert list(made.studies) == ["Saying yes to everything"]
    assert "folds" not in [stage.name for stage in made.stages]


def test_a_given_teacher_is_checked_and_taken() -> None:
    made = recipe(teacher="file:mine")
    assert made.stage("teacher").inputs == {"checkpoint": "file:mine"}
    assert made.stage("noise-0").inputs == {"teacher": "teacher.model"}


def test_a_row_may_have_numbers_of_its_own() -> None:
    made = recipe(lr=0.5, numbers={"kd.lr": 0.25, "kd.temperature": 3, "logistic.strength": 7})
    rates = {name: lesson_of(made, name).objective.phases["student"] for name in ("kd", "noise")}
    assert [rates[name].optimizer.lr for name in ("kd", "noise")] == [0.25, 0.5]
    logistic = made.stage("logistic-0")
    assert isinstance(logistic, Convert)
    assert isinstance(logistic.convert, FitCounts)
    assert logistic.convert.strength == 7


def lesson_of(made: Recipe, name: str) -> Train:
    stage = made.stage(f"{name}-0")
    assert isinstance(stage, Train)
    return stage


def test_stages_and_folds_train_alike() -> None:
    """What is cross-validated, and for what settings are chosen, is what the rows are."""
    settings = make_settings(NAME, "small", {})
    assert isinstance(settings, AfStipSettings)
    made = make_recipe(NAME, settings)
    for name in STUDENTS:
        if name == "logistic":
            continue
        own, stage = lesson(settings, name), lesson_of(made, name)
        assert isinstance(own, Lesson)
        assert (stage.objective, stage.fresh, stage.steps) == (own.objective, own.fresh, own.steps)
        assert ("teacher" in stage.inputs) == bool(own.teacher)
        assert stage.inputs.get("data", "data.nothing") == f"data.{own.reads}"


def test_learned_vectors_are_a_base_of_every_network() -> None:
    made = recipe(embedding="word2vec")
    for name in ("teacher", "supervised-0", "generator-0", "textcnn-0"):
        stage = made.stage(name)
        assert isinstance(stage, Train)
        assert stage.inputs["embedding"] == "embedding.model"
        assert set(stage.bases.values()) == {"embedding"}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"students": ["kd"], "method": "kd", "exported": "kd"}, "baseline 'supervised'"),
        ({"students": ["supervised"]}, "method 'noise' is not among them"),
        ({"folds": 2}, "folds: 3 or more"),
        ({"numbers": {"kd.rate": 1}}, "numbers: 'kd.rate' is no <row>.<number>"),
        ({"numbers": {"kd.alpha": 2}}, "alpha"),
        ({"exported": "bilstm"}, "recurrent"),
        ({"alpha": 2}, "alpha"),
        ({"novel": "reentrancy"}, "'reentrancy' is among the types"),
        ({"embedding": "word2vec", "vectors": 33}, "must be even"),
        ({"shots": [1]}, "shots must be >= 2"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(StillhouseError, match=reason) as error:
        recipe(**settings)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, BadSetting)
