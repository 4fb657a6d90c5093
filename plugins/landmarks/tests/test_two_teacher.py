from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from stillhouse.data.data import TensorData
from stillhouse.errors import BadSetting, StillhouseError, UnknownName
from stillhouse.objectives.objective import Composed, Tensors
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse.work import Work
from stillhouse_landmarks.augment import FaceAugment
from stillhouse_landmarks.objectives import NOBODY, PAPER, RELEASED
from stillhouse_landmarks.recipes.soft_faces import Copies, SoftFaces
from stillhouse_landmarks.recipes.two_teacher_settings import STUDENTS
from stillhouse_landmarks.shape import ShapeModel, shape_role

NAME = "landmarks/two_teacher"


def recipe(scale: str = "tiny", **settings: Any) -> Any:
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def test_stages_of_a_seed_and_rows_of_the_report() -> None:
    made = recipe(students=["l1", "paper"], seeds=2)
    assert [s.name for s in made.stages] == [
        "data", "shape", "soft", "tough", "tough-scores", "tolerant", "tolerant-scores",
        "l1-0", "l1-0-scores", "l1-1", "l1-1-scores",
        "paper-0", "paper-0-scores", "paper-1", "paper-1-scores",
        "onnx-0", "int8-0", "int8-0-scores", "onnx-1", "int8-1", "int8-1-scores",
        "errors", "shipped", "softness", "export",
    ]  # fmt: skip
    assert {title: row.stages for title, row in made.rows.items()} == {
        "tough teacher": ("tough-scores",),
        "tolerant teacher": ("tolerant-scores",),
        "student L1": ("l1-0-scores", "l1-1-scores"),
        "student both (paper)": ("paper-0-scores", "paper-1-scores"),
        "student both (paper), int8": ("int8-0-scores", "int8-1-scores"),
    }
    assert [row.kind for row in made.rows.values()] == [
        "teacher", "teacher", "baseline", "student", "compressed"
    ]  # fmt: skip


def test_a_seed_later_leaves_the_stages_there_are() -> None:
    one, two = recipe(seeds=1), recipe(seeds=2)
    for stage in one.stages:
        assert two.stage(stage.name) == stage


def test_students_differ_only_in_what_they_learn_from() -> None:
    made = recipe("small")
    students = [made.stage(f"{name}-0") for name in STUDENTS]
    for student in students:
        assert isinstance(student, Train)
        assert student.setup() == students[0].setup()
        assert student.fresh == students[0].fresh
        assert student.objective.phases == students[0].objective.phases
        assert student.inputs["data"] == "soft.train"


def test_each_student_is_given_the_teachers_its_loss_reads() -> None:
    made = recipe()
    read = {
        name: sorted({"tough", "tolerant"} & set(made.stage(f"{name}-0").inputs))
        for name in STUDENTS
    }
    assert read == {
        "l2": [], "l1": [], "l1-teacher": ["tough"], "tough": ["tough"], "tolerant": ["tolerant"],
        "paper": ["tolerant", "tough"], "released": ["tolerant", "tough"],
    }  # fmt: skip


def test_teachers_learn_from_hard_and_from_soft_landmarks_by_l2() -> None:
    made = recipe("paper")
    for name, column in (("tough", "landmarks"), ("tolerant", "soft_landmarks")):
        teacher = made.stage(name)
        assert isinstance(teacher, Train)
        assert isinstance(teacher.objective, Composed)
        assert teacher.objective.outputs_of("batch") == (column,)
        assert teacher.fresh["teacher"].kwargs["dropout"] == 0.5


class Says(torch.nn.Module):
    """A role that says what it was given."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.points = points

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        return {"landmarks": self.points}


@pytest.mark.parametrize(
    ("variant", "main", "tough", "tolerant"),
    [
        # d = 0.1; tough t = 0.2 (negative assistant); tolerant t = 0.04 (positive assistant)
        ("paper", 2.5 * 0.1, -0.45 * 0.1, 0.9 * 0.06),
        ("released", 2 * (0.01 + 3 * 0.04 - 0.0016), -0.45 * 0.1, 1.8 * 0.06),
    ],
)
def test_the_stage_minimises_the_loss_by_hand(
    variant: str, main: float, tough: float, tolerant: float
) -> None:
    p, g, a, m = (
        torch.full((6, 136), value, dtype=torch.float64) for value in (0.6, 0.5, 0.7, 0.46)
    )
    models = {"student": Says(p), "tough": Says(a), "tolerant": Says(m)}
    objective = recipe().stage(f"{variant}-0").objective
    batch = {"landmarks": g, "id": torch.arange(6)}
    terms = objective.terms("student", models, batch, step=0, steps=1, rng=torch.Generator())
    assert {n: v.item() for n, v in terms.items()} == pytest.approx(
        {"main": main, "tough": tough, "tolerant": tolerant}
    )


def test_the_students_of_one_teacher_have_the_papers_loss_without_the_other() -> None:
    settings = make_settings(NAME, "tiny")
    assert settings.loss("paper") == PAPER
    assert settings.loss("released") == RELEASED
    assert settings.loss("tough") == replace(PAPER, tolerant=NOBODY)
    assert settings.loss("tolerant") == replace(PAPER, tough=NOBODY)
    assert settings.loss("l1") is settings.loss("l2") is settings.loss("l1-teacher") is None


def test_numbers_reach_their_loss_only_and_the_truth_must_stay_a_minimum() -> None:
    settings = make_settings(
        NAME, "tiny", {"numbers": {"paper.beta": 0.5, "released.tough.positive": 1.5}}
    )
    assert settings.loss("paper") == replace(PAPER, beta=0.5)
    tough = replace(RELEASED.tough, positive=1.5)
    assert settings.loss("released") == replace(RELEASED, tough=tough)
    # 2.5 >= (0.45 + 0.45) / beta needs beta >= 0.36; with one teacher half of it does
    with pytest.raises(BadSetting, match="the truth is no minimum"):
        recipe(numbers={"paper.beta": 0.3})
    assert recipe(students=["l1", "tough"], numbers={"paper.beta": 0.3})


def test_paper_has_the_settings_of_the_paper() -> None:
    made = recipe("paper")
    student = made.stage("paper-0")
    assert isinstance(student, Train)
    # 4 x 3148 faces make 179 batches of 70
    assert (student.steps, student.batch) == (150 * 179, 70)
    optimizer = student.objective.phases["student"].optimizer
    assert (optimizer.lr, optimizer.kwargs) == (1e-3, {"weight_decay": 1e-4})
    assert student.fresh["student"].kwargs["name"] == "mobilenetv2_100"
    assert made.stage("tough").fresh["teacher"].kwargs["name"] == "efficientnet_b3"
    assert student.fresh["student"].kwargs["images"]["size"] == 224


def test_nothing_but_the_training_faces_shapes_calibrates_or_trains() -> None:
    made = recipe("small")
    for stage in made.stages:
        if isinstance(stage, Evaluate):
            assert stage.inputs["data"] == (
                "data.train" if stage.name == "softness" else "data.test"
            )
        elif stage.name != "data":
            assert stage.inputs.get("data", "data.train") in ("data.train", "soft.train")
    tried = recipe("small", scored_on="validation")
    assert {s.inputs["data"] for s in tried.stages if isinstance(s, Evaluate)} == {
        "data.train",
        "data.validation",
    }


def test_own_teachers_are_used_as_they_are() -> None:
    made = recipe(teacher="file:a", tolerant="file:b")
    for name, file in (("tough", "file:a"), ("tolerant", "file:b")):
        assert isinstance(made.stage(name), Convert)
        assert made.stage(name).inputs == {"checkpoint": file}
        assert made.stage("paper-0").inputs[name] == f"{name}.model"


def test_without_int8_there_is_none() -> None:
    made = recipe(int8=False)
    assert not [s.name for s in made.stages if s.name.startswith(("int8", "onnx", "shipped"))]
    assert "onnx" not in made.stage("export").inputs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"students": ["l2"]}, "name each student once, and l1 among them"),
        ({"students": ["l1", "l1"]}, "name each student once"),
        ({"students": ["l1", "papr"]}, "students.1: Input should be 'l2', 'l1'"),
        (
            {"numbers": {"paper.betta": 1}},
            r"unknown number 'paper.betta'. Did you mean 'paper.beta'",
        ),
        ({"student": "mobilenet"}, "unknown model 'mobilenet'"),
        ({"variance": 1}, "variance: Input should be less than 1"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StillhouseError, match=message):
        recipe(**settings)


def faces(count: int = 12) -> TensorData:
    rng = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=rng)
    return TensorData(
        {"images": images, "landmarks": 0.3 + 0.4 * torch.rand(count, 136, generator=rng)}
    )


def test_soft_faces_are_views_with_the_soft_landmarks_of_their_own_points() -> None:
    data = faces()
    shape = ShapeModel.fit(data.rows(torch.arange(12))["landmarks"], 0.5)
    augment = FaceAugment(occlusion=0.0)
    make = SoftFaces(augment=Copies(augment=augment), views=3)
    made = make({"data": data, "shape": shape_role(shape)}, work=Work())
    parts = list(made["train"])
    whole = data.rows(torch.arange(12))
    assert torch.equal(parts[0]["images"], whole["images"])
    assert torch.equal(parts[0]["landmarks"], whole["landmarks"])
    for view in (1, 2):
        expected = augment({**whole, "view": torch.full((12,), view)})
        assert torch.equal(parts[view]["images"], expected["images"])
        assert torch.equal(parts[view]["landmarks"], expected["landmarks"])
    for part in parts:
        # the stored modes lie otherwise in memory: sums in another order
        torch.testing.assert_close(part["soft_landmarks"], shape.soften(part["landmarks"]))
        assert not torch.allclose(part["soft_landmarks"], part["landmarks"], atol=1e-3)


def test_the_shape_model_is_fitted_to_the_views_that_train() -> None:
    made = recipe("small")
    shape, soft = made.stage("shape"), made.stage("soft")
    assert isinstance(shape, Convert)
    assert isinstance(soft, Make)
    assert shape.convert.augment == soft.make.augment
    assert shape.convert.views == soft.make.views
    with pytest.raises(BadSetting, match="views must be >= 1"):
        SoftFaces(augment=Copies(augment=FaceAugment()), views=0)


def test_an_unknown_student_architecture_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'mobilenetv2'"):
        recipe(student="mobilenetv3")
