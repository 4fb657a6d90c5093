"""Studies of a report: their tables, their place on the page, what of them is published."""

import dataclasses
import json
from pathlib import Path

import pytest

from stillhouse.errors import UnknownName
from stillhouse.metrics.known import guessed
from stillhouse.metrics.scores import Declared, Score
from stillhouse.recipe import Recipe
from stillhouse.report import publish, report
from stillhouse.report.build import build
from stillhouse.report.document import Document, Study, Value, load
from stillhouse.report.pixels import smaller
from stillhouse.report.statistics import summarize
from stillhouse.report.studies import study_tables
from stillhouse.report.tables import Table
from stillhouse.runs import Runs

from .written import ONE, THREE, Step, Story, picture, write_run

SCORES = {
    "diswot/kendall_tau": 0.5,
    "diswot/kendall_tau_low": 0.25,
    "diswot/kendall_tau_high": 0.75,
    "parameters/kendall_tau": -0.125,
    "parameters/search_seconds": 2.0,
    "speedup": 180.0,
}
TITLE = "Scores of 27 networks"


def study(*seeds: dict[str, float]) -> Study:
    stored = dict.fromkeys(name for scores in seeds for name in scores)
    places = {name: (name.rpartition("/")[0], name.rpartition("/")[2]) for name in stored}
    scores = {name: declared(name) for _, name in places.values()}
    return Study(
        title="t",
        stages=("a",),
        scores=tuple(scores.values()),
        values=tuple(
            Value(row=row, score=score, summary=summarize([s[name] for s in seeds if name in s]))
            for name, (row, score) in places.items()
        ),
    )


def declared(name: str) -> Score:
    bounded = name in ("kendall_tau", "x")
    ends = (f"{name}_low", f"{name}_high") if bounded else None
    return dataclasses.replace(guessed(name), ends=ends)


def text(table: Table) -> list[tuple[str, ...]]:
    return [table.head, *table.rows]


def test_scores_with_a_line_are_a_grid_and_the_others_a_list():
    grid, rest = study_tables(study(SCORES))
    assert text(grid) == [
        ("", "Kendall tau", "Search (lower is better), s"),
        ("diswot", "0.5000 (0.2500 to 0.7500)", "\N{EN DASH}"),
        ("parameters", "\N{MINUS SIGN}0.1250", "2.00"),
    ]
    assert text(rest) == [("", "Value"), ("Speedup", "180.00")]


def test_over_seeds_the_spread_stands_beside_a_value():
    (grid,) = study_tables(
        study(*({"a/x": v, "a/x_low": 0.0, "a/x_high": 1.0} for v in (0.4, 0.6)))
    )
    assert text(grid)[1] == ("a", "0.5000 (\N{PLUS-MINUS SIGN}0.1414 sd)")


def test_a_score_that_only_ends_like_a_bound_is_shown():
    (table,) = study_tables(study({"a/tide_low": 1.0}))
    assert text(table)[1] == ("a", "1.0000")


def studied(story: Story, root: Path) -> tuple[Recipe, Runs]:
    """The written run with a study beside its rows."""
    runs = Runs(root=root, recipe="vision/distill", variant="small")
    plain = write_run(story, runs.folder)
    stage = Step(name="ranks", kind="Evaluate", inputs={"data": "data.test"}, outputs=("scores",))
    out = runs.folder / "ranks" / "scores"
    (out / "plots").mkdir(parents=True)
    (out / "scores.json").write_text(json.dumps(SCORES))
    (out / "plots" / "scatter.png").write_bytes(picture())
    (out / "samples.png").write_bytes(picture())
    record = {"stage": "ranks", "kind": "Evaluate", "key": "k", "inputs": {}}
    product = {"kind": "scores", "path": "scores", "digest": "d"}
    (out.parent / "stage.json").write_text(json.dumps({**record, "outputs": {"scores": product}}))
    scores = {n: declared(n) for n in ("kendall_tau", "search_seconds", "speedup")}
    ends = [Score(name=f"kendall_tau_{end}", better="higher") for end in ("low", "high")]
    known = Declared(
        scores=(*scores.values(), *ends),
        cells={n: (n.partition("/")[0], n.partition("/")[2]) for n in SCORES if "/" in n},
    )
    run = {"key": "k", "seconds": 1.0, "started": "", "device": "cpu"}
    (runs.folder / "ranks.run.json").write_text(
        json.dumps({**run, "declared": dataclasses.asdict(known)})
    )
    return (
        dataclasses.replace(plain, stages=(*plain.stages, stage), studies={TITLE: ("ranks",)}),
        runs,
    )


def document(recipe: Recipe, runs: Runs) -> Document:
    return build(recipe, runs.recipe, runs.root, runs.folder)


def test_a_study_changes_no_row(tmp_path: Path):
    recipe, runs = studied(THREE, tmp_path)
    with_study, without = document(recipe, runs), document(THREE.recipe(), runs)
    assert with_study.rows == without.rows
    assert with_study.primary == without.primary == "accuracy"
    assert {
        f"{value.row}/{value.score}".removeprefix("/"): value.summary.mean
        for value in with_study.studies[0].values
    } == SCORES
    added = [p for p in with_study.pictures if p not in without.pictures]
    assert [(p.name, p.plot, p.study, p.row) for p in added] == [
        ("samples", False, True, TITLE),
        ("scatter", True, True, TITLE),
    ]


def test_a_study_has_its_section_on_the_page(tmp_path: Path):
    recipe, runs = studied(ONE, tmp_path)
    page = report(recipe, runs)
    for shown in (page.read_text(), page.with_name("report.md").read_text()):
        section = shown[shown.rindex(TITLE, 0, shown.index("scatter (ranks)")) :]
        assert "0.2500 to 0.7500" in shown
        assert section.index("scatter (ranks)") < section.index("finished stages took")


def test_what_is_published_of_a_study_shows_numbers_only(tmp_path: Path):
    recipe, runs = studied(ONE, tmp_path)
    report(recipe, runs)
    target = tmp_path / "docs"
    shown = publish(runs.folder, target).read_text()
    assert [p.name for p in load(target).pictures] == ["scatter"]
    assert "samples" not in shown
    plot = (target / "figures" / "ranks-scores-plots-scatter.png").read_bytes()
    assert plot == smaller(picture())[1]


def test_a_study_of_an_unknown_stage_says_so():
    recipe = ONE.recipe()
    with pytest.raises(
        UnknownName, match=r"study 's': unknown stage 'teacher-score'. Did you mean"
    ):
        dataclasses.replace(recipe, studies={"s": ("teacher-score",)})
