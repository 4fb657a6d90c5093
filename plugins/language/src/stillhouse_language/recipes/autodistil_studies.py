"""The studies of language/autodistil."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stillhouse.recipe import Scale
from stillhouse.references import Ref, out
from stillhouse.search.correlations import RankCorrelations, Scatter
from stillhouse.stages import Evaluate, Make
from stillhouse_language.proxy import RelationScore
from stillhouse_language.rates import RATE, ChosenRates
from stillhouse_language.recipes.autodistil_settings import ROWS, TEACHER, WHOLE, AutoDistil
from stillhouse_language.studies import Choices, HeldOutLoss, RankSubnets, TaskTable
from stillhouse_language.tuning import Lesson

if TYPE_CHECKING:
    from stillhouse_language.recipes.autodistil import Parts

TABLE: Mapping[str, str] = {
    "chosen": "chosen by the search",
    "largest": "largest under the budget",
    "hand": "hand-made",
}
ALONE = "labels alone"
RESAMPLES: Mapping[Scale, int] = {"tiny": 100, "small": 1000, "paper": 1000}
PROXIES = ("relation", "parameters", "macs")


def studies(settings: AutoDistil, parts: "Parts") -> dict[str, Sequence[Evaluate]]:
    """Evaluations by heading of the report."""
    found: dict[str, Sequence[Evaluate]] = {
        "What was chosen": [_choices(parts)],
        "Relation loss on held-out text": [_losses(settings, parts)],
        "How scores rank fine-tuned subnets": [_ranking(settings, parts)],
        "Tasks, few labels and many": [_tasks(settings, parts)],
    }
    return found | ({"Learning rates": [_rates(parts)]} if settings.rates else {})


def _choices(parts: "Parts") -> Evaluate:
    metric = Choices(spaces=parts.settings.sub_spaces(), choices=parts.choices())
    return Evaluate(name="choices", metrics=(metric,), inputs={"data": parts.search["trials"]})


def _rates(parts: "Parts") -> Evaluate:
    """What each row has chosen on the rows kept apart."""
    titles = {TEACHER: "teacher, fine-tuned"} | {row: ROWS[row] for row in parts.rows}
    tables = {row: _table(parts, row) for row in titles}
    return Evaluate(
        name="rates",
        metrics=(ChosenRates(titles={f"rate-{row}": title for row, title in titles.items()}),),
        inputs={f"rate-{row}": table for row, table in tables.items()},
        data=tuple(f"rate-{row}" for row in tables),
    )


def _table(parts: "Parts", row: str) -> Ref:
    found = parts.rate(row)
    assert found is not None
    return found


def _losses(settings: AutoDistil, parts: "Parts") -> Evaluate:
    """The SuperLMs beside what they began as, and beside the one of K = 1."""
    spaces = settings.sub_spaces().spaces
    roles: dict[str, Ref] = {}
    lines: dict[str, tuple[str, str]] = {}
    for name in spaces:
        begun, done = f"slices-{name}", f"superlm-{name}"
        roles |= {begun: out(parts.slices[name]), done: out(parts.superlms[name])}
        lines |= {f"{name}, teacher's slices": (name, begun), f"{name}, SuperLM": (name, done)}
    for row, search in parts.whole.items():
        ref = next(r for port, r in search.inputs.items() if port == f"superlm-{WHOLE}")
        assert isinstance(ref, Ref)
        roles[row] = ref
        long = "equal compute" if row.endswith("long") else "equal steps"
        lines |= {f"{name}, K = 1, {long}": (name, row) for name in spaces}
    metric = HeldOutLoss(
        lines=dict(sorted(lines.items(), key=lambda line: list(spaces).index(line[1][0]))),
        spaces=spaces,
        score=_all_held(settings, parts),
    )
    inputs = {"data": parts.text["held"], "teacher": parts.teacher, **roles}
    return Evaluate(name="relation-loss", metrics=(metric,), inputs=inputs)


def _all_held(settings: AutoDistil, parts: "Parts") -> RelationScore:
    """The search's score on all rows that are held out."""
    score = parts.search.score
    assert isinstance(score, RelationScore)
    return replace(score, rows=settings.held)


def _ranking(settings: AutoDistil, parts: "Parts") -> Evaluate:
    task = parts.tasks[0]
    score = parts.search.score
    assert isinstance(score, RelationScore)
    make = RankSubnets(
        spaces=settings.sub_spaces(),
        score=score,
        lesson=Lesson(
            tuning=replace(parts.tuning.tuning(), steps=settings.ranked_steps),
            head=parts.tuning.head(),
            labels=settings.ranked_labels,
        ),
        count=settings.ranked,
        seeds=settings.ranked_seeds,
    )
    ranked = Make(
        name="ranked",
        make=make,
        inputs={
            "held": parts.text["held"],
            "teacher": parts.teacher,
            "train": parts.tuning.pool(),
            "test": task["test"],
            **parts.superlm_inputs(),
            **({RATE: _table(parts, "chosen")} if settings.rates else {}),
        },
        ports=("subnets",),
    )
    return Evaluate(
        name="ranking",
        metrics=(RankCorrelations(lines=PROXIES, resamples=RESAMPLES[settings.scale]),),
        plots=(Scatter(lines=PROXIES),),
        inputs={"data": out(ranked)},
    )


def _tasks(settings: AutoDistil, parts: "Parts") -> Evaluate:
    """The cells that the report's own rows, the first task with few labels, do not have."""
    few, head = parts.tuning.tuning(), parts.tuning.head()
    many = replace(few, steps=settings.many_steps)
    lessons: dict[str, tuple[str, str, Lesson]] = {}
    labels: dict[str, str] = {}
    for place, name in enumerate(settings.tasks):
        ports = f"{name}-train", f"{name}-test"
        for count, tuning, title in (
            (settings.few, few, f"{settings.few}"),
            (settings.many, many, f"{settings.many}" if settings.many else "all"),
        ):
            if place or tuning is many:
                lesson = Lesson(tuning=tuning, head=head, labels=count)
                lessons[f"{name}_{title}"] = (*ports, lesson)
                by = ", Matthews" if name in settings.matthews else ""
                labels[f"{name}_{title}"] = f"{name}, {title} labels{by}"
    encoders = parts.encoders()
    lines = {ALONE: "chosen"} | {title: role for role, title in TABLE.items()}
    rates: dict[str, Ref] = {}
    if settings.rates:
        rates = {ALONE: _table(parts, "labels")}
        rates |= {title: _table(parts, role) for role, title in TABLE.items()}
    ports_of = {line: f"rate-{place}" for place, line in enumerate(rates)}
    metric = TaskTable(
        lines=lines,
        lessons=lessons,
        labels=labels,
        seeds=settings.table_seeds,
        fresh=(ALONE,),
        rates=ports_of,
        matthews=tuple(name for name in lessons if name.rpartition("_")[0] in settings.matthews),
    )
    data: dict[str, Ref] = {}
    for place, (name, task) in enumerate(zip(settings.tasks, parts.tasks, strict=True)):
        data[f"{name}-train"] = task["train"] if place else parts.tuning.pool()
        data[f"{name}-test"] = task["test"]
    data |= {ports_of[line]: table for line, table in rates.items()}
    return Evaluate(
        name="tasks",
        metrics=(metric,),
        inputs={**data, **{role: encoders[role] for role in TABLE}},
        data=tuple(data),
    )
