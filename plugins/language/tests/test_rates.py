"""Learning rates chosen on rows kept apart: never on test data, the same grid for all rows."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.artifact import Artifact, Built, load_model, save_model
from stillhouse.data.data import Columns, TensorData
from stillhouse.data.shards import save_data
from stillhouse.errors import BadData, BadSetting
from stillhouse.reach import check_reach
from stillhouse.recipe import Context, Recipe, Stage
from stillhouse.references import Ref
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Make, Train
from stillhouse.work import Work
from stillhouse_language import Architecture
from stillhouse_language.classifier import AddHead
from stillhouse_language.encoders import NewEncoder
from stillhouse_language.rates import ChooseRate, ChosenRates, TrainAtRate, best_rate
from stillhouse_language.recipes.autodistil_settings import ROWS
from stillhouse_language.texts import KeepApart, ReadCorpus, ReadTask
from stillhouse_language.tuning import Lesson, Tuning

NAME = "language/autodistil"
GOOD, BAD = ["good", "fine", "great", "nice"], ["bad", "poor", "awful", "sad"]
TEXTS = [f"{word} {other}" for words in (GOOD, BAD) for word in words for other in ("film", "plot")]
SMALL = Architecture(
    layers=2, width=16, inner=32, heads=4, head_width=4, vocabulary=60, positions=12, full_heads=4
)


def recipe(**settings: Any) -> Recipe:
    return make_recipe(NAME, make_settings(NAME, "tiny", settings))


def read_by(stage: Stage) -> Iterator[str]:
    """All references that a stage reads, and those of the stages behind them."""
    for ref in stage.inputs.values():
        yield str(ref)
        if isinstance(ref, Ref):
            yield from read_by(ref.stage)


def test_no_choice_of_a_rate_and_no_training_reads_a_test_port() -> None:
    made = recipe(seeds=2)
    choices = [s for s in made.stages if isinstance(s, Make) and isinstance(s.make, ChooseRate)]
    trained = [s for s in made.stages if isinstance(s, TrainAtRate)]
    assert [stage.name for stage in choices] == ["rate-teacher", *(f"rate-{row}" for row in ROWS)]
    assert len(trained) == 1 + 2 * len(ROWS)
    for stage in (*choices, *trained):
        read = set(read_by(stage))
        assert "task-kind.train" in read
        assert not any(ref.endswith(".test") for ref in read)
    few = made.stage("few-0")
    assert few.inputs["data"] == "apart.pool"
    assert {stage.inputs["validation"] for stage in choices} == {"apart.validation"}


def test_all_rows_have_the_same_rates_steps_and_labels() -> None:
    made = recipe()
    lessons = dict[str, Lesson]()
    for row in ("teacher", *ROWS):
        stage = made.stage(f"rate-{row}")
        assert isinstance(stage, Make)
        assert isinstance(stage.make, ChooseRate)
        assert stage.make.rates == (1e-3, 3e-3)
        lessons[row] = stage.make.lesson
    assert {row for row, lesson in lessons.items() if lesson.head.fresh} == {"labels"}
    assert len({(lesson.tuning, lesson.labels) for lesson in lessons.values()}) == 1
    finals = [made.stage(f"{row}-tuned-0") for row in ("chosen", "largest", "hand", "one")]
    finals += [made.stage("labels-0"), made.stage("random-0-tuned"), made.stage("teacher-tuned")]
    for stage in finals:
        assert isinstance(stage, TrainAtRate)
        assert stage.inputs["data"] == "few-0.train"
        assert (stage.train.steps, stage.train.batch, stage.seed) == (30, 16, 0)
    alone = made.stage("labels-0")
    assert isinstance(alone, TrainAtRate)
    assert alone.train.reinit == ("student",)


def test_without_rates_there_is_nothing_to_choose() -> None:
    made = recipe(rates=())
    assert isinstance(made.stage("chosen-tuned-0"), Train)
    assert not any("rate" in stage.name or stage.name == "apart" for stage in made.stages)
    assert "Learning rates" not in made.studies


def test_a_rate_of_its_own_reaches_nothing_where_one_is_chosen() -> None:
    settings = make_settings(NAME, "tiny", {"tune_lr": 0.5})
    with pytest.raises(BadSetting, match="tune_lr"):
        check_reach(NAME, settings, {"tune_lr": 0.5})
    given = {"tune_lr": 0.5, "rates": ()}
    check_reach(NAME, make_settings(NAME, "tiny", given), given)


@pytest.mark.parametrize("rates", [(0.0, 1e-3), (1e-3, 1e-3), (-1e-3,)])
def test_rates_that_cannot_be_are_one_line(rates: tuple[float, ...]) -> None:
    with pytest.raises(BadSetting, match="rates: numbers > 0, each once") as error:
        recipe(rates=rates)
    assert "\n" not in str(error.value)


def encoder(folder: Path) -> Built:
    source = {"source": {"text": np.array(TEXTS)}}
    NewEncoder(architecture=SMALL)(source, folder / "encoder", work=Work())
    return load_model(folder / "encoder")


def numbers(columns: Columns, name: str) -> torch.Tensor:
    """A column of numbers."""
    found = columns[name]
    assert isinstance(found, torch.Tensor)
    return found


def labelled(model: Built) -> TensorData:
    arrays = {
        "text": np.array(TEXTS * 4),
        "label": np.array((["good"] * 8 + ["bad"] * 8) * 4),
        "test": np.arange(64) >= 48,
    }
    made = ReadTask(name="x", length=6)({"source": arrays, "model": model}, work=Work())
    return TensorData(made["train"])


def test_rows_kept_apart_are_of_each_class_and_of_no_other_port(tmp_path: Path) -> None:
    data = labelled(encoder(tmp_path))
    keep = KeepApart(rows=10)
    found = keep({"data": data}, work=Work.seeded(3))
    ids = {port: numbers(columns, "id") for port, columns in found.items()}
    every = sorted(torch.cat([*ids.values()]).tolist())
    assert every == numbers(data.columns, "id").tolist()
    assert numbers(found["validation"], "labels").bincount().tolist() == [5, 5]
    again = keep({"data": data}, work=Work.seeded(3))["validation"]
    assert torch.equal(ids["validation"], numbers(again, "id"))
    with pytest.raises(BadData, match="48 rows are wanted, and the data have 48"):
        KeepApart(rows=48)({"data": data}, work=Work())


def context(folder: Path) -> Context:
    out = folder / "out"
    out.mkdir(parents=True)
    return Context(stage="x", out=out, checkpoints=folder / "checkpoints", caches=folder / "caches")


def test_the_rate_that_learns_is_chosen_and_trained_at(tmp_path: Path) -> None:
    """1e-9 learns nothing, so that 3e-3 must be chosen."""
    model = encoder(tmp_path)
    data = labelled(model)
    tuning = Tuning(steps=60, batch=8, lr=1.0, fresh_lr=1.0)
    lesson = Lesson(tuning=tuning, head=AddHead(dropout=0.0), labels=24)
    choose = ChooseRate(lesson=lesson, rates=(1e-9, 3e-3))
    given = {"encoder": model, "train": data, "validation": data}
    table = choose(given, work=Work.of(context(tmp_path / "a"), 0))["rate"]
    stayed, learned = numbers(table, "accuracy").tolist()
    assert learned > max(0.9, stayed + 0.2)
    assert best_rate(TensorData(table), where="x") == 3e-3
    shown = ChosenRates(titles={"rate-x": "row"})
    work = replace(Work(), data={"rate-x": TensorData(table)})
    found = shown({}, TensorData({}), work=work)
    assert found["row", "chosen_lr"] == pytest.approx(30)
    assert found["row", "validation_accuracy"] == learned
    spec, module = AddHead(dropout=0.0).made(model.module, ["bad", "good"], seed=1)
    headed = Built(spec=spec, module=module, assets=model.assets)
    artifacts: dict[str, Artifact] = {
        "data": save_data(tmp_path / "data", data.columns),
        "student": save_model(tmp_path / "student", headed),
    }
    train = Train(
        name="x",
        objective=tuning.objective(),
        inputs=dict.fromkeys(artifacts, "file:x"),
        steps=5,
        batch=8,
        seed=2,
    )
    at = TrainAtRate.of(train, Ref("rate-x.rate"))
    rate = save_data(tmp_path / "rate", table)
    result = at.run({**artifacts, "rate": rate}, context(tmp_path / "b"))
    assert result.measured["chosen"] == {"lr": 3e-3}
    same = at.at(3e-3).run(artifacts, context(tmp_path / "c"))
    other = at.at(1e-3).run(artifacts, context(tmp_path / "d"))
    assert result.outputs["student"].digest == same.outputs["student"].digest
    assert result.outputs["student"].digest != other.outputs["student"].digest


def test_other_data_than_a_table_of_rates_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="stage 'x': the port 'rate' holds no table of rates"):
        best_rate(TensorData({"id": torch.arange(2)}), where="stage 'x'")
    tuning = Tuning(steps=1, batch=1, lr=1.0, fresh_lr=1.0)
    lesson = Lesson(tuning=tuning, head=AddHead(), labels=2)
    with pytest.raises(BadSetting, match="rates: name at least one, each > 0 and once"):
        ChooseRate(lesson=lesson, rates=(1e-3, 0.0))


def test_short_rows_of_text_are_left_out(tmp_path: Path) -> None:
    model = encoder(tmp_path)
    texts = ["good", "good film", "good film bad plot"] * 4
    read = ReadCorpus(length=8, held=1, rows=9, shortest=4)
    found = read({"source": {"text": np.array(texts)}, "model": model}, work=Work())
    lengths = torch.cat([numbers(found[port], "mask").sum(1) for port in ("held", "train")])
    assert sorted(lengths.tolist()) == [4] * 4 + [6] * 4
    with pytest.raises(BadData, match="0 rows of 7 to 8 tokens are all held out"):
        ReadCorpus(length=8, held=1, rows=9, shortest=7)(
            {"source": {"text": np.array(texts)}, "model": model}, work=Work()
        )
