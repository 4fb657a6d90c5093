"""Comparisons and references, on toys."""

import functools
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from matplotlib.figure import Figure

from stillhouse.artifact import Model
from stillhouse.comparison import Comparison, Scores, by_line, costed, in_int8, seeded
from stillhouse.digest import digest
from stillhouse.errors import BadRecipe, UnknownName
from stillhouse.export import Export
from stillhouse.metrics import Classification, Latency, Lines, Memory, Metric, Profile
from stillhouse.metrics.scores import Score
from stillhouse.recipe import Recipe, Row, Stage
from stillhouse.references import Ref, collected, out
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse.work import Work

from .toys import Net, toy_objective

STUDENT = Model(build=Net, kwargs={"width": 4})
DATA = Make(name="data", make=Work.of, inputs={"source": "data:x"}, ports=("train", "test"))


@dataclass(frozen=True, kw_only=True)
class Counted(Metric):
    """A metric that gives its role's number of parameters."""

    role: str = "student"

    def __call__(self, models: Any, data: Any, *, work: Work) -> Mapping[str, float]:
        return {"weights": float(sum(p.numel() for p in models[self.role].parameters()))}

    def scores(self) -> tuple[Score, ...]:
        return (Score(name="weights", better="lower"),)


@dataclass(frozen=True, kw_only=True)
class Empty:
    name: str = "empty"

    def __call__(self, models: Any, data: Any, *, work: Work) -> Figure:
        return Figure()


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A finish: the student with the teacher, as one model."""

    teacher: Ref

    def __call__(self, stage: Stage) -> Stage:
        if "student" not in stage.outputs:
            return stage
        inputs = {"student": out(stage), "teacher": self.teacher}
        return Convert(name=f"{stage.name}-merged", convert=Export(), inputs=inputs)


def train(name: str, **roles: str) -> Train:
    return Train(
        name=name,
        objective=toy_objective(),
        inputs={"data": DATA["train"], "teacher": "file:t", **roles},
        fresh={"student": STUDENT},
        steps=5,
        batch=2,
    )


TEACHER = Convert(name="given", convert=Export(), inputs={"checkpoint": "file:t"})
EXPORT = Convert(name="export", convert=Export(), inputs={"data": DATA["test"]})


def comparison(**changes: Any) -> Comparison:
    taught = train("kd", teacher=out(TEACHER))
    made = Comparison(
        teachers={"large": TEACHER},
        students={"plain": seeded(train("plain"), 2), "kd": seeded(taught, 2)},
        titles={"kd": "student + kd"},
        baseline="plain",
        exported="kd",
        scores=Scores(
            metrics=(Counted(),),
            inputs={"data": DATA["test"], "teacher": out(TEACHER)},
            measures=(Counted(role="teacher"),),
            figures=(Empty(),),
        ),
        teacher_scores=Scores(
            role="teacher", metrics=(Counted(role="teacher"),), inputs={"data": DATA["test"]}
        ),
    )
    return replace(made, **changes)


def recipe(made: Comparison, **more: Any) -> Recipe:
    return made.recipe(name="r", reference="", export=EXPORT, **more)


def test_a_reference_is_its_text_and_knows_its_stage() -> None:
    ref = DATA["test"]
    assert ref == "data.test"
    assert ref.stage is DATA
    assert digest({"x": ref}) == digest({"x": "data.test"})
    assert pickle.loads(pickle.dumps(ref)).stage == DATA
    assert out(DATA) == "data.train"
    with pytest.raises(
        UnknownName, match="stage 'data': unknown output 'tset'. Did you mean 'test'"
    ):
        DATA["tset"]


def test_stages_are_collected_behind_what_they_read_each_once() -> None:
    first = replace(train("kd", teacher=out(TEACHER)), seed=0)
    last = Convert(name="last", convert=Export(), inputs={"a": out(first), "b": out(TEACHER)})
    assert [s.name for s in collected(last, first)] == ["data", "given", "kd", "last"]
    other = replace(TEACHER, inputs={"checkpoint": "file:other"})
    with pytest.raises(BadRecipe, match="stage 'given': two different stages have this name"):
        collected(last, Convert(name="more", convert=Export(), inputs={"a": out(other)}))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"titles": {"kd": "plain"}}, "comparison: 2 rows are called 'plain'; rename them"),
        ({"titles": {"kd": "large"}}, "comparison: 2 rows are called 'large'; rename them"),
        ({"exported": "kdd"}, "comparison: unknown exported student 'kdd'. Did you mean 'kd'"),
        ({"baseline": "plian"}, "comparison: unknown baseline 'plian'. Did you mean 'plain'"),
    ],
)
def test_rows_that_would_hide_each_other_are_refused(changes: Any, line: str) -> None:
    with pytest.raises((BadRecipe, UnknownName), match=line):
        comparison(**changes)


def test_several_data_ports_of_a_comparison() -> None:
    made = comparison()
    inputs = {**made.scores.inputs, "far": DATA["train"]}
    scores = replace(made.scores, inputs=inputs, data=("data", "far"))
    stage = recipe(replace(made, scores=scores)).stage("kd-0-scores")
    assert isinstance(stage, Evaluate)
    assert stage.data_ports == ("data", "far")


def test_stages_rows_and_export_of_a_comparison() -> None:
    made = recipe(comparison())
    assert [s.name for s in made.stages] == [
        "data", "given", "given-scores", "plain-0", "plain-0-scores", "plain-1", "plain-1-scores",
        "kd-0", "kd-0-scores", "kd-1", "kd-1-scores", "export",
    ]  # fmt: skip
    assert made.rows == {
        "large": Row(kind="teacher", stages=("given-scores",)),
        "plain": Row(kind="baseline", stages=("plain-0-scores", "plain-1-scores")),
        "student + kd": Row(kind="student", stages=("kd-0-scores", "kd-1-scores")),
    }
    assert (made.baseline, made.method) == ("plain", "student + kd")
    assert made.stage("kd-1").seed == 1
    assert made.stage("export").inputs == {
        "student": "kd-0.student", "scores": "kd-0-scores.scores", "data": "data.test"
    }  # fmt: skip


def test_a_teacher_of_its_own_for_each_seed_is_a_row_and_timed_once() -> None:
    own = tuple(replace(TEACHER, name=f"given-{seed}") for seed in range(2))
    timed = replace(comparison().teacher_scores or comparison().scores, measures=(Counted(),))
    made = comparison(teachers={}, seeded_teachers={"large": own}, teacher_scores=timed)
    whole = recipe(made)
    assert whole.rows["large"] == Row(kind="teacher", stages=("given-0-scores", "given-1-scores"))
    scored = [whole.stage(f"given-{seed}-scores") for seed in range(2)]
    assert [len(stage.measures) for stage in scored if isinstance(stage, Evaluate)] == [1, 0]
    assert made.lines()["large"] == "given-0"
    assert made.roles()["given-0"] == out(own[0])
    with pytest.raises(BadRecipe, match="2 rows are called 'large'"):
        comparison(seeded_teachers={"large": own})


def test_what_is_timed_and_drawn_and_in_which_role() -> None:
    made = recipe(comparison())
    scored = {s.name: s for s in made.stages if isinstance(s, Evaluate)}
    assert scored["given-scores"].inputs == {"data": "data.test", "teacher": "given.model"}
    assert scored["kd-1-scores"].inputs == {
        "data": "data.test", "teacher": "given.model", "student": "kd-1.student"
    }  # fmt: skip
    timed = [name for name, stage in scored.items() if stage.measures]
    assert timed == ["plain-0-scores", "kd-0-scores"]
    assert [name for name, stage in scored.items() if stage.figures] == ["kd-0-scores"]


def test_what_is_timed_goes_by_place_not_by_seed() -> None:
    odd = {
        name: tuple(replace(train(name), name=f"{name}-{seed}", seed=seed) for seed in (3, 4, 5))
        for name in ("plain", "kd")
    }
    small = [Convert(name=f"small-{s}", convert=Export(), inputs={}, seed=s) for s in (3, 4)]
    made = recipe(comparison(students=odd, compressed={"small": small}))
    scored = [s for s in made.stages if isinstance(s, Evaluate)]
    assert [s.name for s in scored if s.measures] == [
        "plain-3-scores", "kd-3-scores", "small-3-scores"
    ]  # fmt: skip
    assert made.rows["student + kd"].stages == ("kd-3-scores", "kd-4-scores", "kd-5-scores")


def test_a_merged_student_in_int8_has_the_seed_of_its_training() -> None:
    made = comparison(finish=Merge(teacher=out(TEACHER)))
    small = [
        in_int8(made.model(stage), DATA["train"], outputs=("logits",), samples=7)
        for stage in made.students["kd"]
    ]
    assert [(stage.name, stage.seed) for stage in small] == [("int8-0", 0), ("int8-1", 1)]
    assert [stage.inputs["student"] for stage in small] == ["onnx-0.model", "onnx-1.model"]
    floats = small[1].inputs["student"]
    assert isinstance(floats, Ref)
    assert floats.stage.inputs["student"] == "kd-1-merged.model"
    whole = recipe(replace(made, compressed={"in int8": small}))
    assert whole.rows["in int8"].stages == ("int8-0-scores", "int8-1-scores")


def test_as_exported_reads_the_data_of_the_scores() -> None:
    made = comparison(files={"onnx": "file:o", "int8": "file:i"})
    inputs = {"faces": DATA["test"], "teacher": out(TEACHER)}
    scores = replace(made.scores, inputs=inputs, data=("faces",))
    turns = replace(made, scores=scores).as_exported(teacher="large", metric=Counted)
    assert turns.data_ports == ("faces",)
    assert turns.inputs["faces"] == "data.test"
    assert "data" not in turns.inputs


NO_DATA = Scores(metrics=(Counted(),), inputs={"teacher": out(TEACHER)}, data=())


@pytest.mark.parametrize(
    ("changes", "teacher", "error", "line"),
    [
        ({}, "large", BadRecipe, "as_exported: no file 'onnx'; give the exported student's as"),
        ({"files": {"onnx": "file:o"}}, "large", BadRecipe, "as_exported: no file 'int8'; give"),
        ({}, "lagre", UnknownName, "as_exported: unknown teacher 'lagre'. Did you mean 'large'"),
        (
            {"files": {"onnx": "file:o", "int8": "file:i"}, "scores": NO_DATA},
            *("large", BadRecipe, "as_exported: students are scored on no data"),
        ),
    ],
)
def test_what_as_exported_lacks_is_named(
    changes: Any, teacher: str, error: type[Exception], line: str
) -> None:
    with pytest.raises(error, match=line):
        comparison(**changes).as_exported(teacher=teacher, metric=Counted)


@pytest.mark.parametrize("seed", [2, -1])
def test_a_seed_that_a_row_has_not_is_named(seed: int) -> None:
    with pytest.raises(BadRecipe, match=rf"roles\({seed}\): student 'plain' has 2 of them"):
        comparison().roles(seed)


def test_an_export_of_a_role_without_a_port_is_named() -> None:
    export = replace(EXPORT, convert=Export(role="generator"))
    line = (
        r"stage 'export' exports the role 'generator', but no port has that name \(it has data, "
        r'scores, student\); say role="student"'
    )
    with pytest.raises(BadRecipe, match=line):
        comparison().recipe(name="r", reference="", export=export)
    own = replace(export, inputs={**EXPORT.inputs, "generator": out(TEACHER)})
    made = comparison().recipe(name="r", reference="", export=own)
    assert made.stage("export").inputs["generator"] == "given.model"


def test_finish_leads_to_what_is_scored_and_exported() -> None:
    made = recipe(comparison(finish=Merge(teacher=out(TEACHER))))
    assert made.stage("kd-1-scores").inputs["student"] == "kd-1-merged.model"
    assert made.stage("given-scores").inputs["teacher"] == "given.model"
    assert made.stage("export").inputs["student"] == "kd-0-merged.model"


def test_compressed_students_have_rows_and_scores_of_their_own() -> None:
    made = comparison()
    int8 = in_int8(made.model(made.first), DATA["train"], outputs=("logits",), samples=7)
    assert int8.inputs == {"data": "data.train", "student": "onnx-0.model"}
    files = {"onnx": int8.inputs["student"], "int8": out(int8)}
    small = replace(made.scores, metrics=(Counted(role="student"),), measures=(), figures=())
    made = replace(made, compressed={"in int8": [int8]}, compressed_scores=small, files=files)
    turns = made.as_exported(teacher="large", metric=Counted)
    whole = recipe(made, studies={"As exported": [turns]})
    assert whole.rows["in int8"] == Row(kind="compressed", stages=("int8-0-scores",))
    assert whole.stage("int8-0-scores").inputs["student"] == "int8-0.model"
    assert files.items() <= whole.stage("export").inputs.items()
    assert whole.studies == {"As exported": ("shipped",)}
    assert turns.inputs == {
        "data": "data.test", "teacher": "given.model", "student": "kd-0.student",
        "onnx": "onnx-0.model", "int8": "int8-0.model",
    }  # fmt: skip
    lines = turns.metrics[0]
    assert isinstance(lines, Lines)
    assert lines.lines["large, torch"] == Counted(role="teacher")
    assert lines.lines["student, ONNX Runtime, int8"] == Counted(role="int8")


def test_rows_side_by_side() -> None:
    made = comparison()
    lines = {"large": "given", "plain": "student-plain", "student + kd": "student-kd"}
    assert made.lines() == lines
    assert made.roles(1) == {
        "given": "given.model", "student-plain": "plain-1.student", "student-kd": "kd-1.student"
    }  # fmt: skip
    scores = costed(Counted(), inputs=made.scores.inputs, role="teacher")
    assert scores.metrics == (Counted(), Profile(role="teacher"))
    assert scores.measures == (Latency(role="teacher"), Memory(role="teacher"))
    metric = functools.partial(Classification, teacher=None)
    assert by_line(metric, {"a": "x"}) == Lines(lines={"a": Classification(role="x")})
