"""Stages of language/arte that read and make data: tasks, models as they are, drafts, the data of
each row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from stillhouse.objectives.language import lm_cross_entropy_loss
from stillhouse.objectives.objective import Composed, Cosine, Optimizer, Phase, Weighted
from stillhouse.objectives.term import Term
from stillhouse.recipe import Stage
from stillhouse.references import out
from stillhouse.stages import Convert, Make, Train
from stillhouse_language.arte.arithmetic import STYLES
from stillhouse_language.arte.corpora import Kind, StartModel, WriteCorpus
from stillhouse_language.arte.drafting import Elicit, TakeDrafts
from stillhouse_language.arte.endpoint import Endpoint
from stillhouse_language.arte.published import PUBLISHED
from stillhouse_language.arte.reading import PARTS, TASKS, ReadTasks
from stillhouse_language.arte.tailoring import ChooseExamples, Pick, PickDrafts, WriteExamples
from stillhouse_language.arte.testing_rows import TokenizeTest
from stillhouse_language.causal.loading import LoadCausalLM
from stillhouse_language.recipes.arte_settings import TOKENS, ArteSettings

if TYPE_CHECKING:
    from stillhouse_language.recipes.arte_alignment import Aligning

PICKS: Mapping[str, Pick] = {"original": "best", "random": "random", "worst": "worst"}
ROWS_A_STEP = 32  # texts of a step of the models trained here


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What everything else starts from."""

    read: Make
    teacher: Stage
    student: Stage
    drafts: Make
    tested: Make

    @classmethod
    def of(cls, settings: ArteSettings) -> "Sources":
        counts = {
            "seeds": settings.examples,
            "validation": settings.validation,
            "test": settings.test,
            "pool": settings.pool,
        }
        source = {} if settings.trained_here else {"source": settings.data}
        read = Make(
            name="data",
            make=ReadTasks(tasks=settings.tasks, counts=counts),
            inputs=source,
            ports=(TASKS, *(part for part in PARTS if counts[part])),
        )
        if settings.trained_here:
            teacher = _trained(settings, "teacher", settings.teacher_width)
            student = _trained(settings, "student", settings.width)
        else:
            teacher = _loaded(settings, "teacher", settings.teacher)
            same = settings.teacher == settings.student
            student = teacher if same else _loaded(settings, "student", settings.student)
        tested = Make(
            name="tested",
            make=TokenizeTest(),
            inputs={"test": read["test"], TASKS: read[TASKS], "student": out(student)},
            ports=("test",),
        )
        drafts = _drafts(settings, read, teacher)
        return cls(read=read, teacher=teacher, student=student, drafts=drafts, tested=tested)

    def known(self) -> dict[str, str]:
        """What new questions must not repeat, the tasks, and the student to fit."""
        parts = {part: self.read[part] for part in (TASKS, "seeds", "validation", "test")}
        return {**parts, "student": out(self.student)}


def _loaded(settings: ArteSettings, name: str, given: str) -> Convert:
    inputs = {"weights": given}
    if settings.tokenizer:
        inputs["tokenizer"] = settings.tokenizer
    return Convert(name=name, convert=LoadCausalLM(dtype=settings.dtype), inputs=inputs)


def _trained(settings: ArteSettings, kind: Kind, width: int) -> Train:
    start = Convert(
        name=f"{kind}-start",
        convert=StartModel(width=width, layers=settings.layers),
        inputs={},
        seed=0 if kind == "teacher" else 1,
    )
    steps = settings.pretraining if kind == "student" else settings.teacher_pretraining
    corpus = Make(
        name=f"{kind}-texts",
        make=WriteCorpus(kind=kind, rows=ROWS_A_STEP * steps, per_prompt=settings.asked),
        inputs={"model": out(start)},
        ports=("train",),
    )
    optimizer = Optimizer(build=torch.optim.AdamW, lr=8e-3, kwargs={"weight_decay": 0.0})
    schedule = Cosine(warmup=0.05)
    phase = Phase(trains=(kind,), optimizer=optimizer, schedule=schedule, clip_norm=1.0)
    term = Term(lm_cross_entropy_loss, f"{kind}.hidden", f"{kind}.head", "batch.labels")
    return Train(
        name=kind,
        objective=Composed(phases={"learn": phase}, losses={"ce": Weighted(term=term)}),
        inputs={"data": out(corpus), kind: out(start)},
        steps=steps,
        batch=ROWS_A_STEP,
    )


def _drafts(settings: ArteSettings, read: Make, teacher: Stage) -> Make:
    parts = {part: read[part] for part in (TASKS, "seeds", "validation", "test")}
    if settings.drafts == "data":
        return Make(
            name="drafts",
            make=TakeDrafts(questions=settings.questions),
            inputs={TASKS: read[TASKS], "pool": read["pool"]},
            ports=("drafts", "pool"),
        )
    endpoint = None
    if settings.drafts == "endpoint":
        endpoint = Endpoint(address=settings.endpoint, model=settings.endpoint_model)
    make = Elicit(
        questions=settings.questions,
        per_prompt=settings.asked,
        rounds=settings.rounds,
        temperature=settings.temperature,
        longest_question=settings.longest_question,
        longest=settings.longest,
        endpoint=endpoint,
    )
    given = {} if endpoint else {"teacher": out(teacher)}
    return Make(name="drafts", make=make, inputs={**parts, **given}, ports=("drafts",))


def styles_of_tasks(settings: ArteSettings) -> tuple[str, ...]:
    """The styles of the tasks that are known before anything is read."""
    known = [PUBLISHED[task].task.styles for task in settings.tasks if task in PUBLISHED]
    if "arithmetic" in settings.tasks:
        known.append(dict.fromkeys(STYLES, ""))
    return tuple(dict.fromkeys(style for styles in known for style in styles))


def data_of(settings: ArteSettings, sources: Sources, aligned: "Aligning") -> Mapping[str, Make]:
    """The data of each row that has data of its own, by row."""
    own = [row for row in settings.rows if row != TOKENS]
    return {row: _data(settings, sources, aligned, row) for row in own}


def _data(settings: ArteSettings, sources: Sources, aligned: "Aligning", row: str) -> Make:
    inputs = sources.known()
    if row in PICKS:
        make = PickDrafts(pick=PICKS[row], by=settings.prefer)
        inputs = {key: inputs[key] for key in (TASKS, "student")}
        inputs["preferences"] = out(aligned.preferences)
        return Make(name=f"{row}-data", make=make, inputs=inputs, ports=("train",))
    teacher = {
        "unaligned": sources.teacher,
        "reversed": aligned.merged(reverse=True),
    }.get(row) or aligned.merged()
    inputs["teacher"] = out(teacher)
    if settings.drafts == "data":
        choose = ChooseExamples(
            questions=settings.questions,
            judged=settings.pool - settings.questions,
            per_prompt=settings.asked,
        )
        inputs["pool"] = sources.drafts["pool"]
        if row != "unaligned":
            inputs["reference"] = out(sources.teacher)
        return Make(name=f"{row}-data", make=choose, inputs=inputs, ports=("train",))
    write = WriteExamples(
        questions=settings.questions,
        per_prompt=settings.asked,
        rounds=settings.rounds,
        temperature=settings.temperature,
        longest_question=settings.longest_question,
        longest=settings.longest,
        old_questions=row == "rationale",
        old_rationales=row == "question",
    )
    if row == "rationale":
        inputs["preferences"] = out(aligned.preferences)
    if row == "question":
        inputs["original"] = out(sources.teacher)
    return Make(name=f"{row}-data", make=write, inputs=inputs, ports=("train",))
