"""Metrics of tables and of other data ports: what they refuse, what they leave out of a score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from stillhouse.data.data import Data
from stillhouse.data.shards import save_data
from stillhouse.errors import BadRecipe, UnknownName
from stillhouse.metrics import Latencies, Lines, Metric, On
from stillhouse.metrics.metric import check_metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.objective import Models
from stillhouse.recipe import Bound, Recipe, Row
from stillhouse.stages import Evaluate
from stillhouse.work import Work

from .toys import toy_context, toy_data


@dataclass(frozen=True, kw_only=True)
class Rows(Metric):
    """How many rows the data have; it says that it leaves out as many."""

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        return {"rows": float(len(data))}

    def scores(self) -> Sequence[Score]:
        return (Score(name="rows", better="higher"), Score(name="boxes", better="neither"))

    def uncounted(self, models: Models, data: Data, *, work: Work) -> Mapping[str, Sequence[str]]:
        return {"rows": [f"{len(data)} of them"]}


@dataclass(frozen=True, kw_only=True)
class ByClass(Metric):
    """A table whose rows are known when it has run."""

    def __call__(self, models: Models, data: Data, *, work: Work) -> Any:
        return {("cats", "rows"): 1.0}

    def scores(self) -> Sequence[Score]:
        return (Score(name="rows", better="higher"),)


@dataclass(frozen=True, kw_only=True)
class Mute(Metric):
    """A metric that declares nothing."""

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        return {}


def evaluated(*metrics: Metric, measures: tuple[Metric, ...] = ()) -> Evaluate:
    return Evaluate(
        name="scores",
        metrics=metrics,
        measures=measures,
        inputs={"near": "data:near", "far": "data:far"},
        data=("near", "far"),
    )


def test_what_is_left_out_is_that_of_the_metric_s_own_data(tmp_path: Path) -> None:
    inputs = {
        "near": save_data(tmp_path / "near", toy_data(3).columns),
        "far": save_data(tmp_path / "far", toy_data(5).columns),
    }

    def left(*metrics: Metric, measures: tuple[Metric, ...] = ()) -> Any:
        stage, folder = evaluated(*metrics, measures=measures), tmp_path / str(len(seen))
        seen.append(folder)
        return stage.run(inputs, toy_context(folder)).measured["uncounted"]

    seen: list[Path] = []
    assert left(Rows()) == {"rows": ["3 of them"]}
    assert left(On(data="far", metric=Rows())) == {"rows": ["5 of them"]}
    table = Lines(lines={port: On(data=port, metric=Rows()) for port in ("near", "far")})
    assert left(table) == {"rows": ["3 of them", "5 of them"]}
    assert left(ByClass(), measures=(Lines(lines={"a": Rows()}),)) == {"rows": ["3 of them"]}


@pytest.mark.parametrize(("make", "where"), [
    (lambda: Lines(lines={"kd": Mute()}), "Lines: row 'kd': Mute declares no score; make it a "),
    (lambda: On(data="far", metric=Mute()), "On: data port 'far': Mute declares no score; make it"),
    (lambda: Lines(lines={}), "Lines: a table needs at least one row"),
])  # fmt: skip
def test_what_declares_no_score_is_refused_when_the_recipe_is_made(make: Any, where: str) -> None:
    with pytest.raises(BadRecipe, match=where):
        make()


def test_what_is_no_metric_is_refused() -> None:
    with pytest.raises(BadRecipe, match="Lines: row 'a': str declares no score"):
        check_metric("accuracy", where="Lines: row 'a'")


def bounded(bound: Bound, *metrics: Metric) -> Recipe:
    stage = evaluated(*metrics)
    return Recipe(
        name="r",
        reference="",
        stages=(stage,),
        rows={"student": Row(stages=("scores",), kind="baseline")},
        control=bound,
    )


BOUND = Bound(name="chance", stages=("scores",), score="rows")
TABLE = Lines(lines={"near": On(data="near", metric=Rows()), "all": ByClass()})


@pytest.mark.parametrize(("bound", "metric", "line"), [
    (replace(BOUND, score="rwos"), Rows(), "control: unknown score 'rwos'. Did you mean 'rows'? Valid: boxes, rows."),
    (replace(BOUND, counts=("boxen",)), Rows(), "control: unknown score 'boxen'. Did you mean 'boxes'? Valid: boxes, rows."),
    (replace(BOUND, row="naer"), TABLE, "control: unknown row of score 'rows' 'naer'. Did you mean 'near'? Valid: all, near."),
    (BOUND, TABLE, "control: unknown row of score 'rows' ''. Valid: all, near."),
])  # fmt: skip
def test_a_bound_that_no_stage_can_give_is_refused(bound: Bound, metric: Metric, line: str) -> None:
    with pytest.raises(UnknownName) as caught:
        bounded(bound, metric)
    assert str(caught.value) == line


@pytest.mark.parametrize(("bound", "metric"), [
    (BOUND, Rows()),
    (replace(BOUND, counts=("boxes",)), Rows()),
    (replace(BOUND, row="near"), TABLE),
    (replace(BOUND, row="all/cats"), TABLE),
    # which rows it has is known when it has run
    (replace(BOUND, row="cats"), ByClass()),
])  # fmt: skip
def test_a_bound_that_may_be_given_is_taken(bound: Bound, metric: Metric) -> None:
    assert bounded(bound, metric).control == bound


def test_rows_that_are_known_beforehand() -> None:
    assert list(TABLE.rows()) == ["near", "all"]
    assert list(Lines(lines={"a": TABLE, "b": Rows()}).rows()) == ["a/near", "a/all", "b"]
    assert list(On(data="far", metric=TABLE).rows()) == ["near", "all"]
    assert list(Latencies(lines={"teacher, torch": "teacher"}).rows()) == ["teacher, torch"]
