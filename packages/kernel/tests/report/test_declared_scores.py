"""A third party's score in a report: its label, unit and direction are those its metric declared."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from stillhouse.errors import BadRecipe, CorruptArtifact
from stillhouse.metrics.lines import Lines
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score
from stillhouse.recipe import Recipe, Row
from stillhouse.report import brief, report, results
from stillhouse.report.build import build
from stillhouse.report.cards import cards
from stillhouse.report.document import Document, load, parse
from stillhouse.report.figures import plots
from stillhouse.report.studies import row_tables, study_tables
from stillhouse.report.tables import other_scores
from stillhouse.runs import Runs, run_recipe
from stillhouse.stages import Evaluate, Make
from stillhouse.work import Work

MINUS = "\N{MINUS SIGN}"
FID = Score(name="fid", better="lower", label="FID")


@dataclass(frozen=True, kw_only=True)
class Frechet(Metric):
    """Values as a third party's metric would find them."""

    value: float
    declared: tuple[Score, ...] = (FID,)

    def __call__(self, models: Any, data: Any, *, work: Work) -> Mapping[str, float]:
        return {"fid": self.value, **({"psnr": 31.4} if len(self.declared) > 1 else {})}

    def scores(self) -> Sequence[Score]:
        return self.declared


@dataclass(frozen=True, kw_only=True)
class ByClass(Metric):
    def __call__(self, models: Any, data: Any, *, work: Work) -> Mapping[Any, float]:
        return {("cats/dogs", "fid"): 7.0, ("birds", "fid"): 9.0, "gap": 2.0}

    def scores(self) -> Sequence[Score]:
        return (FID, Score(name="gap", better="neither", unit="count"))


@dataclass(frozen=True, kw_only=True)
class Fixed(Metric):
    """One score of one value."""

    score: Score
    value: float

    def __call__(self, models: Any, data: Any, *, work: Work) -> Mapping[str, float]:
        return {self.score.name: self.value}

    def scores(self) -> Sequence[Score]:
        return (self.score,)


def numbers(inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Mapping[str, torch.Tensor]]:
    return {"test": {"x": torch.arange(4.0)}}


def recipe(*, declared: tuple[Score, ...] = (FID,), kd: float = 12.5) -> Recipe:
    def scored(name: str, metric: Metric) -> Evaluate:
        return Evaluate(name=name, metrics=(metric,), inputs={"data": "data.test"})

    values = {"teacher": 10.0, "plain": 20.0, "kd": kd}
    return Recipe(
        name="sampled",
        reference="",
        stages=(
            Make(name="data", make=numbers, inputs={}, ports=("test",)),
            *(scored(n, Frechet(value=v, declared=declared)) for n, v in values.items()),
            scored("classes", ByClass()),
        ),
        rows={
            "teacher": Row(stages=("teacher",), kind="teacher"),
            "student": Row(stages=("plain",), kind="baseline"),
            "student + kd": Row(stages=("kd",)),
        },
        method="student + kd",
        studies={"By class": ("classes",)},
    )


def made(root: Path, given: Recipe) -> tuple[Document, Runs]:
    runs = Runs(root=root, recipe="third/sampled", variant="tiny")
    run_recipe(given, runs)
    return build(given, runs.recipe, root, runs.folder), runs


def test_a_lower_fid_is_a_gain_everywhere(tmp_path: Path) -> None:
    document, _ = made(tmp_path, recipe())
    assert document.primary == "fid"
    assert (
        document.headline.sentence == "Student + kd is 7.5000 of FID ahead of student, on 1 seed."
    )
    table = results(document)
    assert table.head == ("Model", "FID", "Difference")
    assert table.rows[2] == ("student + kd", "12.50", f"{MINUS}7.5000 (1 seed)")
    assert brief(document).head == ("Model", "FID", "Difference")
    (gain, reached, *_) = cards(document)
    assert (gain.label, gain.value) == ("Against student", f"{MINUS}7.5000")
    assert (reached.label, reached.value, reached.note) == (
        *("FID, student + kd", "12.50", "teacher 10.00"),
    )
    drawn = {plot.name: plot for plot in plots(document)}
    assert "FID (lower is better)" in drawn["scores"].svg
    worse, _ = made(tmp_path / "worse", recipe(kd=25.0))
    assert worse.headline.sentence == "Student + kd is 5.0000 of FID behind student, on 1 seed."


def test_another_unit_and_a_second_score(tmp_path: Path) -> None:
    psnr = Score(name="psnr", better="higher", unit="dB", label="PSNR")
    document, _ = made(tmp_path, recipe(declared=(psnr, FID)))
    assert other_scores(document).head == ("Model", "PSNR, dB")
    assert other_scores(document).rows[0] == ("teacher", "31.4")


def test_a_table_has_the_rows_it_was_given(tmp_path: Path) -> None:
    document, runs = made(tmp_path, recipe())
    grid, rest = study_tables(document.studies[0])
    assert grid.head == ("", "FID (lower is better)")
    assert grid.rows == (("cats/dogs", "7.0000"), ("birds", "9.0000"))
    assert rest.rows == (("Gap", "2"),)
    stored = json.loads((runs.folder / "classes/scores/scores.json").read_text())
    assert stored == {"cats/dogs/fid": 7.0, "birds/fid": 9.0, "gap": 2.0}


def test_the_tables_of_rows_are_shown_model_by_model(tmp_path: Path) -> None:
    """A metric by class in the evaluations of rows, not of a study."""
    lines = Lines(lines={"near": Frechet(value=3.0), "far": Frechet(value=4.0)})
    plain = recipe()
    stages = [
        dataclasses.replace(s, metrics=(*s.metrics, ByClass(), *more))
        if isinstance(s, Evaluate) and s.name in ("plain", "kd")
        else s
        for s in plain.stages
        for more in [(lines,) if s.name == "kd" else ()]
    ]
    document, runs = made(tmp_path, dataclasses.replace(plain, stages=stages))
    (table,) = row_tables(document)
    assert (table.title, table.head) == (
        *("FID (lower is better)", ("Model", "cats/dogs", "birds", "near", "far")),
    )
    assert table.rows == (
        ("student", "7.0000", "9.0000", "\N{EN DASH}", "\N{EN DASH}"),
        ("student + kd", "7.0000", "9.0000", "3.0000", "4.0000"),
    )
    assert document.primary == "fid"
    assert results(document).head == ("Model", "FID", "Difference")
    page = report(dataclasses.replace(plain, stages=stages), runs)
    assert "cats/dogs" in page.read_text()
    written = page.with_name("report.md").read_text()
    assert "### FID (lower is better)\n\n| Model | cats/dogs | birds | near | far |" in written
    assert load(page) == document


def test_a_score_of_tables_alone_is_no_empty_column(tmp_path: Path) -> None:
    plain = recipe()
    psnr = Score(name="psnr", better="higher", unit="dB", label="PSNR")
    stages = [
        dataclasses.replace(
            s, metrics=(*s.metrics, Lines(lines={"near": Fixed(score=psnr, value=31.4)}))
        )
        if isinstance(s, Evaluate) and s.name == "kd"
        else s
        for s in plain.stages
    ]
    document, _ = made(tmp_path, dataclasses.replace(plain, stages=stages))
    assert other_scores(document).columns == ()
    (table,) = row_tables(document)
    assert (table.head, table.rows) == (("Model", "near, dB"), (("student + kd", "31.4"),))


def test_a_run_keeps_what_its_scores_were_when_it_ran(tmp_path: Path) -> None:
    """A recipe of today may declare them in another way; a run from before a record asks it."""
    document, runs = made(tmp_path, recipe())
    other = Score(name="fid", better="higher", label="Fréchet")
    today = recipe(declared=(other,))
    again = build(today, runs.recipe, tmp_path, runs.folder)
    assert again.score("fid") == document.score("fid") == FID
    for stage in today.stages:
        file = runs.folder / f"{stage.name}.run.json"
        record = json.loads(file.read_text())
        assert ("declared" in record) == isinstance(stage, Evaluate)
        file.write_text(json.dumps({k: v for k, v in record.items() if k != "declared"}))
    older = build(today, runs.recipe, tmp_path, runs.folder)
    assert older.score("fid") == other
    assert [value.row for value in older.studies[0].values] == ["cats/dogs", "birds", ""]


def test_a_damaged_declaration_is_one_line(tmp_path: Path) -> None:
    _, runs = made(tmp_path, recipe())
    file = runs.folder / "kd.run.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"declared": {"scores": [{"name": "fid"}]}}))
    with pytest.raises(CorruptArtifact, match=r"kd\.run\.json: cannot be read \(declared\.scores"):
        build(recipe(), runs.recipe, tmp_path, runs.folder)


def test_what_is_not_declared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BadRecipe,
        match=r"stage 'teacher': Frechet gave 'fid', which it does not declare; add "
        r'Score\(name="fid", better="higher"\), or "lower", to its scores\(\)',
    ):
        made(tmp_path, recipe(declared=(dataclasses.replace(FID, name="fad"),)))
    with pytest.raises(
        BadRecipe, match=r"stage 'teacher': Frechet declares no score; make it a stillhouse.Metric"
    ):
        recipe(declared=())


def test_a_report_of_schema_1_is_read(tmp_path: Path) -> None:
    """As reports were written before scores declared themselves."""
    document, runs = made(tmp_path, recipe())
    page = report(recipe(), runs)
    record = json.loads(page.with_name("report.json").read_text())
    record["schema_version"] = 1
    record["scores"] = [
        {"name": "fid", "label": "Fid", "unit": "", "lower_is_better": False, "cost": False},
        {"name": "macs", "label": "MACs", "unit": "", "lower_is_better": True, "cost": True},
    ]
    summary = record["rows"][0]["scores"]["fid"]
    names = ("a/tau", "a/tau_low", "a/tau_high", "speed_ms")
    record["studies"] = [
        {"title": "s", "stages": ["classes"], "scores": dict.fromkeys(names, summary)}
    ]
    for row in record["rows"]:
        row["standing"] = row.pop("kind")
    for stage in record["stages"]:
        del stage["quantities"]
    found = parse(json.dumps(record), where="here")
    assert found.rows == document.rows
    assert [(s.name, s.better, s.unit, s.cost) for s in found.scores] == [
        ("fid", "higher", "", False),
        ("macs", "lower", "count", True),
    ]
    grid, rest = study_tables(found.studies[0])
    assert grid.rows == (("a", "10.00 (10.00 to 10.00)"),)
    assert rest.rows == (("Speed (lower is better)", "10.0 ms"),)
    page.with_name("report.json").write_text(json.dumps(record))
    assert load(page) == found
    del record["rows"]
    with pytest.raises(CorruptArtifact, match="here: not a report"):
        parse(json.dumps(record), where="here")


def test_a_score_that_two_declare_in_two_ways_is_refused_when_the_recipe_is_built() -> None:
    other = Score(name="fid", better="lower", label="Frechet distance")
    one, two = Frechet(value=1.0), Frechet(value=1.0, declared=(other,))
    apart = "label 'FID' by Frechet{}, and label 'Frechet distance' by Frechet{}; rename one"
    table = Lines(lines={"a": one, "b": two})
    with pytest.raises(BadRecipe) as caught:
        Evaluate(name="e", metrics=(table,), inputs={"data": "data.test"})
    assert apart.format(" in row 'a'", " in row 'b'") in str(caught.value)
    assert str(caught.value).startswith("stage 'e': score 'fid' is declared in two ways: ")
    given = recipe()
    kd = Evaluate(name="kd", metrics=(two,), inputs={"data": "data.test"})
    stages = [kd if stage.name == "kd" else stage for stage in given.stages]
    with pytest.raises(
        BadRecipe, match="recipe 'sampled': the rows: score 'fid' is decl"
    ) as caught:
        dataclasses.replace(given, stages=stages)
    assert apart.format(" of stage 'teacher'", " of stage 'kd'") in str(caught.value)
