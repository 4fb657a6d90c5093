from typing import Any

import pytest

from stillhouse.data.sampling import Beside
from stillhouse.errors import StillhouseError
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Convert, Train
from stillhouse_diffusion.phases import MatchDistribution
from stillhouse_diffusion.recipes.rows import parse_row

NAME = "diffusion/msd"


def recipe(scale: str = "tiny", **settings: Any) -> Any:
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def test_a_row_is_read_off_its_name() -> None:
    row = parse_row("k4-random-half-notsm-adm-x2")
    assert (row.students, row.by, row.half, row.tsm, row.adm, row.times) == (
        4, "random", True, False, True, 2
    )  # fmt: skip
    assert row.base.name == "k4-random-half-notsm-x2"
    assert row.title == "4 students, 2x steps each, random split, narrow, no TSM, DM + ADM"
    assert parse_row("k1").title == "1 student, DM"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("4", "begins with no number of students"),
        ("k0", "begins with no number of students"),
        ("k4-rndom", "unknown word 'rndom'"),
        ("k4-notsm", "have no TSM to leave out"),
        ("k4-half-half", "a word stands twice"),
    ],
)
def test_names_that_are_none_are_refused(name: str, message: str) -> None:
    with pytest.raises(StillhouseError, match=message):
        parse_row(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": ["k1-x2", "k3", "k2"]}, "3 students cannot share 10 classes equally"),
        ({"rows": ["k1", "k2"]}, "baseline: 'k1-x2' is not among rows"),
        ({"precision": "fp16"}, "diverge in fp16; use bf16 or fp32"),
        ({"high": 0.001}, "noise needs low < high"),
        ({"widths": [8, 8, 8, 8, 8]}, "8 pixels cannot be halved 4 times"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StillhouseError, match=message) as error:
        recipe(**settings)
    assert "\n" not in str(error.value)


def test_students_of_a_row_are_stages_of_their_own_that_read_nothing_of_each_other() -> None:
    made = recipe()
    students = [made.stage(f"k2-0-s{n}") for n in range(2)]
    for number, student in enumerate(students):
        assert isinstance(student, Train)
        assert student.inputs["data"] == f"blocks-2.part{number}"
        assert set(made.upstream(student)) == {"blocks-2", "teacher"}
        assert student.setup() == students[0].setup()
    joined = made.stage("k2-0")
    assert isinstance(joined, Convert)
    assert joined.inputs == {
        "student0": "k2-0-s0.student", "student1": "k2-0-s1.student", "owner": "blocks-2.owner"
    }  # fmt: skip


def test_equal_steps_and_equal_compute() -> None:
    made = recipe()
    one, more, two = (made.stage(f"{row}-0-s0") for row in ("k1", "k1-x2", "k2"))
    assert one.steps == two.steps
    assert more.steps == 2 * two.steps
    totals = {row: made.stage(f"{row}-0").convert.training_steps for row in ("k1", "k1-x2", "k2")}
    assert totals["k1-x2"] == totals["k2"] == 2 * totals["k1"]
    # stage 0 counts once, whatever the number of students
    settings: Any = make_settings(NAME, "tiny")
    half = made.stage("k1-half-pairs-0").convert.training_steps
    assert half == totals["k1"] + settings.tsm_steps


def test_the_fake_score_learns_every_step_and_the_generator_every_fifth() -> None:
    phases = recipe().stage("k2-0-s0").objective.phases
    assert (phases["student"].every, phases["fake"].every) == (5, 1)
    assert phases["student"].trains == ("student",)
    assert phases["fake"].trains == ("fake",)


def test_pairs_are_those_of_all_labels_beside_the_part() -> None:
    made = recipe()
    stage = made.stage("k1-half-pairs-0-s0")
    assert stage.data == Beside(ports=("part", "pairs"))
    assert (stage.inputs["part"], stage.inputs["pairs"]) == ("blocks-1.part0", "pairs.train")
    assert stage.objective.phases["student"].every == 1
    assert stage.objective.regression == 0.25


def test_stage_2_restarts_from_stage_1() -> None:
    made = recipe()
    stage = made.stage("k1-adm-0-s0")
    assert (stage.inputs["student"], stage.inputs["fake"]) == ("k1-0-s0.student", "k1-0-s0.fake")
    assert stage.objective.phases["fake"].trains == ("fake", "discriminator")
    assert isinstance(stage.objective, MatchDistribution)
    assert stage.objective.adversarial == 3e-3


def test_a_narrow_student_begins_as_tsm_left_it_or_fresh() -> None:
    rows = ["k1-x2", "k2", "k2-half", "k2-half-notsm"]
    made = recipe(rows=rows)
    assert made.stage("k2-half-0-s0").inputs["student"] == "tsm-0.student"
    assert made.stage("k2-half-0-s0").inputs["fake"] == "teacher.teacher-ema"
    assert set(made.stage("k2-half-notsm-0-s0").fresh) == {"student"}
    other = recipe(rows=rows, fake_init="tsm")
    assert other.stage("k2-half-0-s0").inputs["fake"] == "tsm-0.student"
    # of a student as wide as its teacher there is no TSM
    assert other.stage("k2-0-s0").inputs["fake"] == "teacher.teacher-ema"


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_scales_can_be_built(scale: str) -> None:
    made = recipe(scale)
    assert made.baseline
    assert any(isinstance(stage, Train) for stage in made.stages)


def test_paper_has_the_hyperparameters_of_dmd2() -> None:
    made = recipe("paper")
    stage = made.stage("k4-0-s0")
    phase = stage.objective.phases["student"]
    assert (phase.optimizer.lr, phase.clip_norm, phase.every) == (2e-6, 10, 5)
    assert phase.optimizer.kwargs == {"betas": [0.9, 0.999], "weight_decay": 0.01}
    assert made.stage("k4-adm-0-s0").objective.phases["student"].optimizer.lr == 5e-7
    assert isinstance(made.stage("teacher"), Convert)


def test_the_mixture_is_the_same_method_on_points() -> None:
    made: Any = make_recipe("diffusion/mixture", make_settings("diffusion/mixture", "paper"))
    assert made.stage("k4-0-s0").objective.noise.data == 0.5
    with pytest.raises(StillhouseError, match="one number, the units of a layer"):
        make_settings("diffusion/mixture", "tiny", {"widths": [8, 8]})
