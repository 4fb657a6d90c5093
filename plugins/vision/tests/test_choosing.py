"""Settings chosen on data kept apart: never on test data, the same grid for all rows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.artifact import Artifact
from stillhouse.data.data import Data, RowData, select
from stillhouse.data.shards import load_data, save_data
from stillhouse.errors import BadData, BadRecipe, StillhouseError
from stillhouse.metrics import Classification, Metric, Score
from stillhouse.objectives.objective import Composed, Models
from stillhouse.recipe import Context, Event, Recipe
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Make, Train
from stillhouse.stages.choosing import (
    CHOICES,
    Choices,
    Choose,
    TrainChosen,
    best_row,
    chosen_of,
    read_by,
)
from stillhouse.work import Work
from stillhouse_vision.data import ReadImages
from stillhouse_vision.drawing import KeepApart
from stillhouse_vision.models import ImageSpec
from stillhouse_vision.samples import digits

NAME = "vision/distill"
GRID = {"rates": [0.02, 0.2], "factors": [0.5, 2.0], "temperatures": [], "choose_steps": 3}


def recipe(**settings: Any) -> Recipe:
    given = {"labels": 40, "rows": ["labels", "kd-all", "self-training"], **GRID, **settings}
    return make_recipe(NAME, make_settings(NAME, "tiny", given))


def chooser(made: Recipe, row: str) -> Choose:
    stage = made.stage(f"choose-{row}")
    assert isinstance(stage, Choose)
    return stage


def tables(folder: Path) -> dict[str, Artifact]:
    """Digits, 40 for training and 100 kept apart, as artifacts."""
    images = ImageSpec(size=8, mean=(0.3,), std=(0.37,))
    read = ReadImages(images=images, classes=10)({"source": digits()}, work=Work.seeded(0))
    whole = read["train"]
    assert isinstance(whole, Mapping)
    rows = {"data": torch.arange(0, 400, 10), "validation": torch.arange(5, 400, 4)[:90]}
    return {port: save_data(folder / port, select(whole, index)) for port, index in rows.items()}


def context(folder: Path) -> Context:
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    return Context(
        stage="choose", out=out, checkpoints=folder / "checkpoints", caches=folder / "caches"
    )


def test_a_selection_that_reads_a_test_port_is_refused() -> None:
    made = recipe()
    stage, data = chooser(made, "labels"), made.stage("data")
    assert isinstance(data, Make)
    test = data["test"]
    with pytest.raises(BadRecipe, match="chooses by 'data.test', which is test data; give data"):
        chosen_of(
            stage.candidates,
            name="choose-labels",
            validation=test,
            steps=3,
            metric=Classification(),
            score="accuracy",
        )
    behind = Make(name="copy", make=KeepApart(rows=10), inputs={"data": test}, ports=("pool",))
    with pytest.raises(BadRecipe, match="chooses by 'data.test'"):
        replace(stage, inputs={**stage.inputs, "validation": behind["pool"]})


def test_no_selection_of_the_recipe_reads_a_test_port() -> None:
    made = recipe(seeds=2)
    stages = [stage for stage in made.stages if isinstance(stage, Choose | TrainChosen)]
    assert len(stages) == 3 + 6
    for stage in stages:
        read = set(read_by(stage))
        assert "data.train" in read
        assert not any(ref.endswith(".test") for ref in read)
    assert {chooser(made, row).inputs["validation"] for row in ("labels", "kd-all")} == {
        "apart.validation"
    }
    draws = [made.stage(f"draw-{seed}").inputs["data"] for seed in range(2)]
    assert draws == ["apart.pool"] * 2


def test_all_rows_choose_from_the_same_rates_and_distilled_ones_a_factor() -> None:
    made = recipe()
    grids = {
        row: [tuple(c.chosen.values()) for c in chooser(made, row).candidates.values()]
        for row in ("labels", "kd-all", "self-training")
    }
    assert grids["labels"] == grids["self-training"] == [(0.02,), (0.2,)]
    assert grids["kd-all"] == [(0.02, 0.5), (0.02, 2), (0.2, 0.5), (0.2, 2)]
    for row in grids:
        final = made.stage(f"{row}-0")
        assert isinstance(final, TrainChosen)
        short = chooser(made, row).candidates
        assert {name: c.train.steps for name, c in short.items()} == dict.fromkeys(short, 3)
        for name, candidate in final.candidates.items():
            assert candidate.train == replace(short[name].train, steps=candidate.train.steps)
            assert (
                candidate.train.objective.phases["student"].optimizer.lr == candidate.chosen["lr"]
            )


def test_a_factor_moves_the_teachers_weight_alone() -> None:
    kd = chooser(recipe(), "kd-all").candidates
    weights: dict[str, dict[str, float]] = {}
    for name, candidate in kd.items():
        objective = candidate.train.objective
        assert isinstance(objective, Composed)
        weights[name] = {term: loss.weight for term, loss in objective.losses.items()}
    assert weights["lr0_02-x0_5"] == {"ce": 0.1, "kd": 0.45}
    assert weights["lr0_02-x2"] == {"ce": 0.1, "kd": 1.8}


def test_rows_with_a_temperature_choose_it_too() -> None:
    """A logistic head's outputs are flat at 4: what softens well depends on the teacher."""
    made = recipe(
        rows=["labels", "kd", "kd-all", "rkd-all"], temperatures=[1.0, 4.0], factors=[1.0]
    )
    for row, found in {
        "labels": [None, None],
        "kd": [1, 4, 1, 4],
        "kd-all": [1, 4, 1, 4],
        "rkd-all": [None, None],
    }.items():
        candidates = chooser(made, row).candidates
        assert [c.chosen.get("temperature") for c in candidates.values()] == found
    kd = chooser(made, "kd-all").candidates
    assert list(kd) == ["lr0_02-x1-t1", "lr0_02-x1-t4", "lr0_2-x1-t1", "lr0_2-x1-t4"]
    for candidate in kd.values():
        objective = candidate.train.objective
        assert isinstance(objective, Composed)
        assert (
            objective.losses["kd"].term.hyperparameters["temperature"]
            == candidate.chosen["temperature"]
        )


def test_a_choice_made_once_holds_for_all_seeds() -> None:
    made = recipe(seeds=2)
    for row in ("labels", "kd-all"):
        finals = [made.stage(f"{row}-{seed}") for seed in range(2)]
        assert {stage.inputs["choice"] for stage in finals} == {f"choose-{row}.choice"}
        assert [stage.seed for stage in finals] == [0, 1]
    assert made.studies == {CHOICES: ("choices",)}


def test_the_best_on_validation_is_what_is_trained(tmp_path: Path) -> None:
    """A rate of 1e-9 learns nothing, so that 0.2 must be chosen and trained."""
    inputs = tables(tmp_path)
    stage = chooser(recipe(rates=[1e-9, 0.2], choose_steps=40), "labels")
    chosen = stage.run(inputs, context(tmp_path / "a")).outputs["choice"]
    table = load_data(chosen.path)
    assert table.columns["candidate"] == ["lr0_2", "lr1e-09"]
    learned, stayed = table.rows(torch.arange(2))["score"].tolist()
    assert learned > stayed + 0.1
    assert best_row(table, where="x") == ("lr0_2", learned, {"lr": 0.2})
    made = recipe(rates=[1e-9, 0.2], steps=5).stage("labels-0")
    assert isinstance(made, TrainChosen)
    given = {"data": inputs["data"], "choice": chosen}
    result = made.run(given, context(tmp_path / "b"))
    assert result.measured["chosen"] == {"candidate": "lr0_2", "lr": 0.2}
    candidate = made.candidates["lr0_2"].train
    assert isinstance(candidate, Train)
    again = candidate.run({"data": inputs["data"]}, context(tmp_path / "c"))
    assert result.outputs["student"].digest == again.outputs["student"].digest


def test_a_killed_choice_goes_on_behind_the_last_candidate(tmp_path: Path) -> None:
    inputs, stage = tables(tmp_path), chooser(recipe(), "labels")
    events: list[Event] = []
    ctx = replace(context(tmp_path / "a"), observe=events.append)
    first = stage.run(inputs, ctx).outputs["choice"]
    kept = {p: p.stat().st_mtime_ns for p in ctx.checkpoints.rglob("*") if p.is_file()}
    assert len([event for event in events if event.text.startswith("lr")]) == 2
    again = stage.run(inputs, replace(ctx, out=context(tmp_path / "b").out)).outputs["choice"]
    assert again.digest == first.digest
    assert {p: p.stat().st_mtime_ns for p in ctx.checkpoints.rglob("*") if p.is_file()} == kept


def test_what_was_chosen_stands_in_the_report(tmp_path: Path) -> None:
    columns = {
        "candidate": ["b", "a"],
        "finite": torch.tensor([True, False]),
        "score": torch.tensor([0.5, 0.0], dtype=torch.float64),
        "chosen_lr": torch.tensor([0.2, 0.1], dtype=torch.float64),
        "chosen_temperature": torch.tensor([4.0, 1.0], dtype=torch.float64),
    }
    table = load_data(save_data(tmp_path / "t", columns).path)
    work = replace(Work.seeded(0), data={"p": table})
    (accuracy,) = (each for each in Classification().scores() if each.name == "accuracy")
    study = Choices(titles={"p": "kd"}, score=accuracy)
    assert study({}, table, work=work) == {
        ("kd", "chosen_lr"): 0.2,
        ("kd", "chosen_temperature"): 4.0,
        ("kd", "validation_accuracy"): 0.5,
        ("kd", "tried"): 2,
    }
    labels = {each.name: each.label for each in study.scores()}
    assert labels["chosen_lr"] == "Learning rate"
    assert labels["validation_accuracy"].startswith("Accuracy on the data kept apart")


@dataclass(frozen=True, kw_only=True)
class Loss(Metric):
    """A metric that is better lower, and of one training no number."""

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        accuracy = Classification()(models, data, work=work)["accuracy"]
        return {"loss": math.nan if accuracy < 0.2 else 1 - accuracy}

    def scores(self) -> tuple[Score, ...]:
        return (Score(name="loss", better="lower"), Score(name="seen", better="neither"))


def test_of_a_loss_the_lowest_is_chosen_and_what_is_no_number_last(tmp_path: Path) -> None:
    inputs = tables(tmp_path)
    rates = recipe(rates=[1e-9, 0.2, 0.4], choose_steps=40)
    stage = replace(chooser(rates, "labels"), metric=Loss(), score="loss")
    table = load_data(stage.run(inputs, context(tmp_path / "a")).outputs["choice"].path)
    assert isinstance(table, RowData)
    names, losses = table.columns["candidate"], table.rows(torch.arange(3))["score"].tolist()
    assert isinstance(names, list)
    assert names[-1] == "lr1e-09"
    assert table.rows(torch.arange(3))["finite"].tolist() == [True, True, False]
    assert losses[0] <= losses[1]
    none = replace(stage, candidates={"lr1e-09": stage.candidates["lr1e-09"]})
    nothing = load_data(none.run(inputs, context(tmp_path / "b")).outputs["choice"].path)
    with pytest.raises(BadData, match=r"no candidate is finite \(lr1e-09\); add a lower rate"):
        best_row(nothing, where="x")


def test_candidates_that_differ_in_what_is_chosen_are_refused() -> None:
    stage = chooser(recipe(), "labels")
    one, other = stage.candidates.values()
    with pytest.raises(BadRecipe, match="differ in what is to be chosen"):
        replace(stage, candidates={"a": one, "b": replace(other, chosen={"factor": 1.0})})


def test_a_score_that_nothing_can_be_chosen_by_is_refused() -> None:
    stage = chooser(recipe(), "labels")
    with pytest.raises(BadRecipe, match="'choose-labels': no value of 'seen' is the better one"):
        replace(stage, metric=Loss(), score="seen")
    with pytest.raises(StillhouseError, match="lost.*Did you mean 'loss'"):
        replace(stage, metric=Loss(), score="lost")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rates": [0.1, 0.1]}, r"rates: different numbers > 0 \(got \(0.1, 0.1\)\)"),
        ({"factors": [0.0]}, "factors: different numbers > 0"),
        ({"factors": []}, "factors: name at least one"),
        ({"temperatures": [-1.0]}, "temperatures: different numbers > 0"),
        (
            {"temperatures": [1.0], "numbers": {"kd.temperature": 2.0}},
            "numbers gives kd one temperature, temperatures several",
        ),
    ],
)
def test_bad_grids_are_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StillhouseError, match=message) as error:
        recipe(**settings)
    assert "\n" not in str(error.value)
