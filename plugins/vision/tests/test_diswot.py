from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stillhouse.data import TensorData
from stillhouse.errors import BadData, BadSetting, StillhouseError
from stillhouse.objectives.objective import Composed
from stillhouse.search import AgingEvolution, Exhaustive, RandomSearch
from stillhouse.search.cost import SearchTime
from stillhouse.search.scores import DisWOT
from stillhouse.search.trained import Trained
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Evaluate, Search, Train
from stillhouse.work import Work
from stillhouse_vision.nas_tables import CELLS, SampleCells
from stillhouse_vision.reduce import Reduce
from stillhouse_vision.samples import digits
from stillhouse_vision.spaces import NasBench201, NasBenchMacro, ResNetDepths, ResNetShapes

NAME = "vision/diswot"
CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|avg_pool_3x3~1|none~2|"


def recipe(scale: str = "tiny", **settings: Any) -> Any:
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def test_stages_rows_and_studies() -> None:
    made = recipe(seeds=2)
    assert {t: row.stages for t, row in made.rows.items() if row.kind != "teacher"} == {
        "student": ("plain-0-scores", "plain-1-scores"),
        "student + kd": ("kd-0-scores", "kd-1-scores"),
        "student + kd + M_s + M_r": ("dagger-0-scores", "dagger-1-scores"),
        "largest + kd": ("largest-kd-0-scores", "largest-kd-1-scores"),
        "random + kd": ("random-kd-0-scores", "random-kd-1-scores"),
    }
    assert made.baseline == "student"
    assert dict(made.studies) == {
        "Ranking of 8 trained networks": ("ranking",),
        "Cost of a search, both ways measured": ("calibration-cost",),
        "Cost of a search among this recipe's students": ("search-cost",),
    }
    assert made.stages[-1].inputs["student"] == "kd-0.student"
    small = recipe("small")
    assert next(iter(small.studies)) == "Ranking of 27 trained networks"
    assert list(small.studies)[-1].startswith("Ranking of 48 cells of NAS-Bench-201")


def test_studies_can_be_left_out() -> None:
    whole, made = recipe(), recipe(studies=False)
    left = [s.name for s in whole.stages if s.name not in {t.name for t in made.stages}]
    assert left == [
        "calibration-data", "calibration-teacher", "calibration", "proxies", "ranking",
        "calibration-cost", "search-cost",
    ]  # fmt: skip
    assert made.studies == {}
    assert made.rows == whole.rows


def test_a_seed_later_leaves_the_stages_there_are() -> None:
    one, two = recipe(seeds=1), recipe(seeds=2)
    for stage in one.stages:
        assert two.stage(stage.name) == stage


def test_three_searches_have_one_space_and_one_budget() -> None:
    made = recipe("small")
    search, largest, draw = (made.stage(name) for name in ("search", "largest", "random-0"))
    assert isinstance(search, Search)
    assert isinstance(search.score, DisWOT)
    assert (search.strategy, search.score.inits) == (AgingEvolution(), 4)
    assert (search.score.combine, search.score.batch) == ("zscore", 64)
    assert search.inputs == {"data": "data.train", "teacher": "teacher.teacher"}
    assert isinstance(largest.strategy, Exhaustive)
    assert largest.trials == len(largest.space)
    assert largest.score.proxy == "parameters"
    assert (draw.trials, draw.strategy) == (1, RandomSearch())
    assert search.space == largest.space == draw.space
    assert search.budget == largest.budget == draw.budget == {"parameters": 280_000, "macs": 42e6}


def test_the_budget_of_small_is_that_of_resnet20() -> None:
    made = recipe("small").stage("search")
    costs = made.space.cost({"blocks": [3, 3, 3]})
    larger = [{"blocks": blocks} for blocks in ([4, 3, 3], [3, 4, 3], [3, 3, 4])]
    assert all(costs[name] <= most for name, most in made.budget.items())
    for encoding in larger:
        cost = made.space.cost(encoding)
        assert any(cost[name] > most for name, most in made.budget.items())


def test_students_of_a_network_differ_only_in_what_they_learn_from() -> None:
    made = recipe("small", seeds=3)
    plain, kd, both = (made.stage(f"{name}-1") for name in ("plain", "kd", "dagger"))
    assert isinstance(plain, Train)
    assert plain.setup() == kd.setup() == both.setup()
    for stage in (plain, kd, both):
        assert stage.inputs["student"] == "search.model"
        assert stage.reinit == ("student",)
    assert plain.objective.phases["student"] == kd.objective.phases["student"]
    weights = {name: loss.weight for name, loss in both.objective.losses.items()}
    assert weights == {"ce": 0.1, "kd": 0.9, "M_s": 1.0, "M_r": 3000.0}
    assert made.stage("random-kd-2").inputs["student"] == "random-2.model"
    # equal widths: no projector. Widths that differ: one
    assert both.fresh == {}
    projected = recipe().stage("dagger-0")
    assert projected.fresh["projector"].kwargs["channels"] == [16]
    assert projected.fresh["projector"].kwargs["targets"] == [64]
    assert projected.objective.outputs_of("projector") == ("hint3",)


def test_a_students_first_weights_are_those_of_its_seed_whatever_is_built_beside_it(
    tmp_path: Path,
) -> None:
    made = recipe()
    from stillhouse.artifact import Built, save_model

    teacher = made.stage("teacher").fresh["teacher"]
    student = made.stage("search").space.model({"blocks": [1, 2, 1]})
    artifacts = {
        name: save_model(tmp_path / name, Built(spec=spec, module=spec.new()))
        for name, spec in (("teacher", teacher), ("student", student))
    }
    plain, both = made.stage("plain-0"), made.stage("dagger-0")
    assert "projector" in both.fresh
    weights = [
        stage._roles({name: artifacts[name] for name in stage.inputs if name != "data"})
        for stage in (plain, both)
    ]
    states = [roles["student"].module.state_dict() for roles in weights]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    arrays = digits()
    rows = torch.arange(0, 400, 25)
    images = torch.from_numpy(arrays["train_images"])[rows]
    labels = torch.from_numpy(arrays["train_labels"])[rows]
    return {"id": rows, "view": torch.zeros_like(rows), "images": images, "labels": labels}


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("space", ["depths", "shapes", "nasbench201", "macro"])
def test_the_last_variant_trains_a_student_of_every_space(
    space: str, form: str, batch: dict[str, torch.Tensor]
) -> None:
    made = recipe(space=space, form=form)
    stage = made.stage("dagger-0")
    assert isinstance(stage.objective, Composed)
    searched = made.stage("search").space
    torch.manual_seed(0)
    models = {role: spec.new() for role, spec in stage.fresh.items()}
    models["student"] = searched.model(searched.at(len(searched) - 1)).new()
    models["teacher"] = made.stage("teacher").fresh["teacher"].new().eval().requires_grad_(False)
    terms = stage.objective.terms(
        "student", models, batch, step=0, steps=10, rng=torch.Generator().manual_seed(0)
    )
    expected = {"ce", "kd", "M_r"} | ({"M_s"} if space != "shapes" else set())
    assert set(terms) == expected
    own = sum(value for name, value in terms.items() if name.startswith("M"))
    assert own.item() > 0
    own.backward()
    gradients = [p.grad for p in models["student"].parameters() if p.grad is not None]
    assert any(bool(g.abs().sum() > 0) for g in gradients)


def test_every_space_is_there_and_shapes_say_what_is_left_out() -> None:
    kinds = {"shapes": ResNetShapes, "nasbench201": NasBench201, "macro": NasBenchMacro}
    for name, kind in kinds.items():
        made = recipe(space=name)
        assert isinstance(made.stage("search").space, kind)
        assert ("student + kd + M_r" in made.rows) == (name == "shapes")
    assert isinstance(recipe().stage("search").space, ResNetDepths)


def test_calibration_never_sees_test_data() -> None:
    made = recipe("small")
    calibration = made.stage("calibration")
    assert isinstance(calibration.score, Trained)
    assert calibration.inputs == {
        "data": "calibration-data.train",
        "validation": "calibration-data.validation",
        "teacher": "calibration-teacher.teacher",
    }
    assert made.stage("calibration-data").inputs == {"source": "data.train"}
    assert len(calibration.space) == calibration.trials == 27
    tests = [s.name for s in made.stages if "data.test" in s.inputs.values()]
    assert all(name.endswith("-scores") or name == "export" for name in tests)


def test_paper_has_the_settings_of_the_paper() -> None:
    made = recipe("paper")
    assert len(made.stage("search").space) == 64
    kd = made.stage("kd-0")
    assert (kd.steps, kd.batch, kd.views) == (187_440, 64, 240)
    assert kd.objective.losses["kd"].term.hyperparameters == {"temperature": 4.0}
    factors = [kd.objective.phases["student"].schedule.factor(e * 781, 187_440) for e in (149, 240)]
    assert factors == pytest.approx([1, 0.001])
    cost = made.stage("search-cost")
    assert isinstance(cost, Evaluate)
    measure = cost.measures[0]
    assert isinstance(measure, SearchTime)
    assert set(measure.contest.schedules.values()) == {187_440}
    assert made.stage("nas-sample").make.classes == 100


@pytest.mark.parametrize("batch", [32, 64, 128])
def test_the_papers_epochs_are_as_many_images_whatever_the_batch(batch: int) -> None:
    made = recipe("small", batch=batch)
    for name in ("calibration-cost", "search-cost"):
        stage = made.stage(name)
        assert isinstance(stage, Evaluate)
        measure = stage.measures[0]
        assert isinstance(measure, SearchTime)
        contest = measure.contest
        steps = contest.schedules["training, 240 epochs (computed)"]
        assert contest.trained.batch == batch
        # whole batches of 50,000 images
        assert 240 * (50_000 - batch) < steps * batch <= 240 * 50_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": "depth"}, "space: Input should be 'depths', 'shapes', 'nasbench201' or 'macro'"),
        ({"beta_s": 0, "beta_r": 0}, "beta_s and beta_r are both 0"),
        ({"combine": "rank"}, "combine: Input should be 'zscore' or 'sum'"),
        ({"form": "papers"}, "form: Input should be 'code' or 'paper'"),
        ({"calibration_teacher": [5, 5]}, "calibration_teacher: one number a stage"),
        (
            {"nas": 5, "classes": 3, "names": []},
            "networks have 10 or 100 classes, not 3; set nas=0",
        ),
        ({"depths": [1]}, "choices must be two or more different numbers"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StillhouseError, match=message) as error:
        recipe(**settings)
    assert "\n" not in str(error.value)


def test_reduced_images_are_means_of_areas_and_rows_are_apart() -> None:
    images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).repeat(6, 1, 1, 1)
    images[:, :, 0, 0] += torch.arange(6, dtype=torch.uint8)[:, None] * 4
    source = TensorData({"images": images, "labels": torch.arange(6)})
    rng = torch.Generator().manual_seed(0)
    made = Reduce(size=2, train=4, validation=2)({"source": source}, work=Work(rng=rng))
    labels = [made[port]["labels"].tolist() for port in ("train", "validation")]
    assert sorted(labels[0] + labels[1]) == list(range(6))
    assert (len(labels[0]), len(labels[1])) == (4, 2)
    first = made["train"]["images"][0, 0]
    # areas 0 1 4 5, 2 3 6 7, 8 9 12 13, 10 11 14 15; halves are rounded to even
    shift = labels[0][0]
    assert first.tolist() == [[round((10 + 4 * shift) / 4), 4], [10, 12]]
    with pytest.raises(BadData, match=r"5 \+ 2 images are wanted, there are 6"):
        Reduce(size=2, train=5, validation=2)({"source": source}, work=Work(rng=rng))
    with pytest.raises(BadData, match="images of 4 pixels cannot be reduced to 8"):
        Reduce(size=8, train=4, validation=2)({"source": source}, work=Work(rng=rng))


def test_sampled_cells_are_rows_of_the_table(tmp_path: Path) -> None:
    other = CELL.replace("nor_conv_1x1", "nor_conv_3x3")
    columns = {"arch_str": [CELL, other], "cifar10_test_acc": [91.5, 93.25], "index": [0, 1]}
    pq.write_table(pa.table(columns), tmp_path / CELLS)
    rng = torch.Generator().manual_seed(0)
    made = SampleCells(count=2)({"source": tmp_path}, work=Work(rng=rng))["trials"]
    found = dict(zip(made["encoding"], made["score"].tolist(), strict=True))
    ops = '["nor_conv_3x3", "none", "skip_connect", "{}", "avg_pool_3x3", "none"]'
    assert found == pytest.approx(
        {
            f'{{"ops": {ops.format("nor_conv_1x1")}}}': 0.915,
            f'{{"ops": {ops.format("nor_conv_3x3")}}}': 0.9325,
        }
    )
    with pytest.raises(BadData, match="2 cells, 3 are wanted; set fewer"):
        SampleCells(count=3)({"source": tmp_path}, work=Work(rng=rng))
    with pytest.raises(BadSetting, match=r"the table has 10 or 100 classes \(got 3\)"):
        SampleCells(count=1, classes=3)
    with pytest.raises(
        BadData, match="no column cifar100_test_acc; it has arch_str, cifar10_test_acc"
    ):
        SampleCells(count=1, classes=100)({"source": tmp_path}, work=Work(rng=rng))
    with pytest.raises(BadSetting, match=r"count must be >= 1 \(got 0\)"):
        SampleCells(count=0)
    (tmp_path / CELLS).write_bytes(b"not a table")
    with pytest.raises(BadData, match="cannot be read as parquet"):
        SampleCells(count=1)({"source": tmp_path}, work=Work(rng=rng))
