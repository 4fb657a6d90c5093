"""Experiments written once: students of several rows and seeds beside their teachers, what is
made smaller of them, how all are scored, which student is exported.

A recipe makes its own trainings; a `Comparison` turns them into rows, evaluations and an export:

    made = Comparison(
        teachers={"teacher": teacher},
        students={"plain": seeded(plain, 3), "kd": seeded(kd, 3)},
        titles={"plain": "student", "kd": "student + kd"},
        baseline="plain",
        exported="kd",
        scores=costed(Classification(), inputs={"data": data["test"]}),
    )
    return made.recipe(name="sound/distill", reference=PAPER, export=export)

What does not fit is written as a loop over stages, `Row`s and `collected`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from stillhouse.errors import BadRecipe, UnknownName
from stillhouse.metrics import Latencies, Latency, Lines, Memory, Metric, Profile
from stillhouse.quantize.onnx_static import QuantizeStatic, ToOnnx
from stillhouse.recipe import Bound, Kind, Recipe, Row, Stage
from stillhouse.references import Ref, collected, out
from stillhouse.stages import Convert, Evaluate, Make, Search, Train
from stillhouse.stages.evaluate import Figure

Kept = TypeVar("Kept", Train, Convert, Evaluate, Make, Search)
Stages = Sequence[Stage]
Studies = Mapping[str, Sequence[Evaluate]]
NO_STUDIES: Studies = {}
BATCHES = (1, 32)


def seeded(stage: Kept, seeds: int) -> tuple[Kept, ...]:
    """The stage once a seed, as "<name>-0", "<name>-1" and so on."""
    return tuple(replace(stage, name=f"{stage.name}-{seed}", seed=seed) for seed in range(seeds))


def by_line(metric: Callable[..., Metric], lines: Mapping[str, str]) -> Lines:
    """The scores of each line's role, side by side; `metric` makes one of its argument `role`."""
    return Lines(lines={line: metric(role=role) for line, role in lines.items()})


def as_trained(stage: Stage) -> Stage:
    """The stage itself: where the model that is scored is the one that was trained."""
    return stage


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How models are scored: in which role, on which data, beside which others (`inputs`).

    `measures` are of a row's first model alone: its other seeds have the same layers. `figures` and
    `plots` are of the first exported student.
    """

    metrics: tuple[Metric, ...]
    inputs: Mapping[str, str]
    measures: tuple[Metric, ...] = ()
    figures: tuple[Figure, ...] = ()
    plots: tuple[Figure, ...] = ()
    role: str = "student"
    data: tuple[str, ...] = ("data",)  # the ports of `inputs` that hold data

    def of(
        self, stage: Stage, model: str, *, measured: bool = True, shown: bool = False
    ) -> Evaluate:
        """The evaluation "<stage>-scores" of `model`, which `stage` stands for."""
        return Evaluate(
            name=f"{stage.name}-scores",
            metrics=self.metrics,
            inputs={**self.inputs, self.role: model},
            measures=self.measures if measured else (),
            figures=self.figures if shown else (),
            plots=self.plots if shown else (),
            data=self.data,
        )


def costed(
    *metrics: Metric,
    inputs: Mapping[str, str],
    role: str = "student",
    figures: tuple[Figure, ...] = (),
    plots: tuple[Figure, ...] = (),
) -> Scores:
    """The metrics, and what the model costs: size and operations, latency and memory."""
    return Scores(
        role=role,
        metrics=(*metrics, Profile(role=role)),
        inputs=inputs,
        measures=(Latency(role=role), Memory(role=role)),
        figures=figures,
        plots=plots,
    )


def trained(stage: Stage) -> Stage:
    """The stage that trained what conversions, a merge say, read at their port "student"; the stage
    itself where it is none.
    """
    while isinstance(stage, Convert) and isinstance(before := stage.inputs.get("student"), Ref):
        stage = before.stage
    return stage


def in_int8(student: Ref, data: Ref, *, outputs: tuple[str, ...], samples: int) -> Convert:
    """A seed's student in int8 with ranges from `samples` of the data: "int8-<seed>" of the stage
    "onnx-<seed>", which its port "student" reads. The seed is that of its training, from which a
    merge may have made the student.
    """
    seed = trained(student.stage).seed
    floats = Convert(
        name=f"onnx-{seed}",
        convert=ToOnnx(outputs=outputs),
        inputs={"data": data, "student": student},
    )
    return Convert(
        name=f"int8-{seed}",
        convert=QuantizeStatic(samples=samples),
        inputs={"data": data, "student": out(floats)},
        seed=seed,
    )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows of models that are scored alike: teachers, students by seed, compressed students.

    `teachers` and `compressed` are by title of their row, `students` by a short name, which
    `titles` maps to that of the row. The student `exported`, which the headline is about, is
    exported from its first seed. Teachers and compressed students are scored as students are,
    unless scores of their own are given. `finish` leads from what was trained to the stage whose
    first output is scored and exported: the stage itself, or a merge. `files` are the exported
    student's as ONNX, "onnx" and "int8", which are exported with it. `seeded_teachers` are those of
    which each seed has its own, by title; side by side with others the first stands for them.
    """

    teachers: Mapping[str, Stage]
    students: Mapping[str, Stages]
    baseline: str
    exported: str
    scores: Scores
    titles: Mapping[str, str] = field(default_factory=dict[str, str])
    teacher_scores: Scores | None = None
    compressed: Mapping[str, Stages] = field(default_factory=dict[str, Stages])
    compressed_scores: Scores | None = None
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    finish: Callable[[Stage], Stage] = as_trained
    seeded_teachers: Mapping[str, Stages] = field(default_factory=dict[str, Stages])

    def __post_init__(self) -> None:
        for what, name in (("baseline", self.baseline), ("exported student", self.exported)):
            if name not in self.students:
                raise UnknownName(what, name, self.students, where="comparison")
        teachers = [*self.teachers, *self.seeded_teachers]
        titles = [*teachers, *map(self.title, self.students), *self.compressed]
        for title, times in Counter(titles).items():
            if times > 1:
                raise BadRecipe(f"comparison: {times} rows are called '{title}'; rename them")

    def title(self, name: str) -> str:
        """The title of a student's row."""
        return self.titles.get(name, name)

    @property
    def _taught_by(self) -> Mapping[str, Stages]:
        """All teachers by title."""
        return {**{title: (one,) for title, one in self.teachers.items()}, **self.seeded_teachers}

    @property
    def first(self) -> Stage:
        """The training of the student that is exported."""
        return self.students[self.exported][0]

    def model(self, stage: Stage) -> Ref:
        """The model that is scored of what was trained."""
        return out(self.finish(stage))

    def scored(self, stage: Stage) -> Evaluate:
        """The evaluation of a student."""
        first = any(stage == stages[0] for stages in self.students.values())
        return self.scores.of(stage, self.model(stage), measured=first, shown=stage == self.first)

    def lines(self) -> dict[str, str]:
        """Title -> role of the teachers and of each row's student, side by side in one stage."""
        return {title: stages[0].name for title, stages in self._taught_by.items()} | {
            self.title(name): f"student-{name}" for name in self.students
        }

    def roles(self, seed: int = 0) -> dict[str, Ref]:
        """Role -> model of those `lines`, the students of a row's first seed (0), second (1), and
        so on; raises BadRecipe where a row has fewer.
        """
        for name, stages in self.students.items():
            if not 0 <= seed < len(stages):
                raise BadRecipe(
                    f"comparison: roles({seed}): student '{name}' has {len(stages)} of them, "
                    f"roles(0) to roles({len(stages) - 1})"
                )
        return {s[0].name: self.model(s[0]) for s in self._taught_by.values()} | {
            f"student-{name}": self.model(stages[seed]) for name, stages in self.students.items()
        }

    def as_exported(
        self,
        *,
        teacher: str,
        metric: Callable[..., Metric],
        batches: tuple[int, ...] = BATCHES,
    ) -> Evaluate:
        """The exported student by torch and by ONNX Runtime, in floats and in int8, beside a
        teacher, timed in turns on what students are scored on. Raises BadRecipe without the files
        "onnx" and "int8" or without data, UnknownName for no teacher's title.
        """
        self._check_exported(teacher)
        roles = {"student": self.model(self.first), "teacher": self.model(self.teachers[teacher])}
        tested = {port: self.scores.inputs[port] for port in self.scores.data}
        lines = {
            f"{teacher}, torch": "teacher",
            "student, torch": "student",
            "student, ONNX Runtime": "onnx",
            "student, ONNX Runtime, int8": "int8",
        }
        return Evaluate(
            name="shipped",  # part of the stage's key: the name that finished runs have
            metrics=(by_line(metric, lines), by_line(Profile, lines)),
            inputs={**tested, **roles, **self.files},
            measures=(Latencies(lines=lines, batches=batches),),
            data=self.scores.data,
        )

    def _check_exported(self, teacher: str) -> None:
        if teacher not in self.teachers:
            raise UnknownName("teacher", teacher, self.teachers, where="comparison: as_exported")
        for port in ("onnx", "int8"):
            if port not in self.files:
                raise BadRecipe(
                    f"comparison: as_exported: no file '{port}'; give the exported student's as "
                    'files={"onnx": ..., "int8": ...} (in_int8 makes both)'
                )
        if not self.scores.data:
            raise BadRecipe(
                "comparison: as_exported: students are scored on no data, and nothing can be "
                "timed without; give scores a data port"
            )

    def recipe(
        self,
        *,
        name: str,
        reference: str,
        export: Convert,
        studies: Studies = NO_STUDIES,
        notes: tuple[str, ...] = (),
        caution: str = "",
        control: Bound | None = None,
        ceiling: Bound | None = None,
    ) -> Recipe:
        """All of it as a recipe. `export` is given the files, and the ports "student" and "scores"
        where it has none of its own. Raises BadRecipe where it exports a role of another port.
        """
        rows = self._evaluated()
        last = {"student": self.model(self.first), "scores": out(self.scored(self.first))}
        export = replace(export, inputs={**last, **self.files, **export.inputs})
        _check_role(export)
        scored = [stage for _, stages in rows.values() for stage in stages]
        studied = [stage for stages in studies.values() for stage in stages]
        return Recipe(
            name=name,
            reference=reference,
            stages=collected(*scored, *studied, export),
            rows={
                title: Row(kind=kind, stages=_names(stages))
                for title, (kind, stages) in rows.items()
            },
            studies={title: _names(stages) for title, stages in studies.items()},
            method=self.title(self.exported),
            notes=notes,
            caution=caution,
            control=control,
            ceiling=ceiling,
        )

    def _evaluated(self) -> dict[str, tuple[Kind, list[Evaluate]]]:
        """What a row is and its evaluations, by title."""
        rows: dict[str, tuple[Kind, list[Evaluate]]] = {}
        large, small = self.teacher_scores or self.scores, self.compressed_scores or self.scores
        for title, stages in self._taught_by.items():
            rows[title] = (
                "teacher",
                [large.of(s, self.model(s), measured=s == stages[0]) for s in stages],
            )
        for name, stages in self.students.items():
            kind = "baseline" if name == self.baseline else "student"
            rows[self.title(name)] = kind, [self.scored(stage) for stage in stages]
        for title, stages in self.compressed.items():
            rows[title] = (
                "compressed",
                [small.of(stage, out(stage), measured=stage == stages[0]) for stage in stages],
            )
        return rows


def _check_role(export: Convert) -> None:
    role: object = getattr(export.convert, "role", "student")
    if isinstance(role, str) and role not in export.inputs:
        raise BadRecipe(
            f"comparison: stage '{export.name}' exports the role '{role}', but no port has that "
            f'name (it has {", ".join(sorted(export.inputs))}); say role="student", which is the '
            "exported student"
        )


def _names(stages: Sequence[Evaluate]) -> tuple[str, ...]:
    return tuple(stage.name for stage in stages)
