"""From finished stages to a document: rows, differences to the baseline, costs, curves, lineage."""

import json
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillhouse.metrics.scores import Score
from stillhouse.recipe import OUTSIDE, PLOTS, Bound, Recipe
from stillhouse.report.collect import Finished, SettingsFile, collect, read_settings
from stillhouse.report.costs import costlier
from stillhouse.report.diagnosis import diagnose
from stillhouse.report.document import (
    SCHEMA,
    Curve,
    Document,
    Environment,
    ExportedFiles,
    FigureFile,
    Held,
    Row,
    Seed,
    StageEntry,
    Study,
    Value,
)
from stillhouse.report.headline import Findings, headline
from stillhouse.report.lineage import lineage
from stillhouse.report.pairing import difference
from stillhouse.report.statistics import holm, summarize
from stillhouse.report.timings import evaluated_model, timed_in_turns


def build(recipe: Recipe, name: str, root: Path, folder: Path) -> Document:
    """The document of what has finished of `name` ("domain/recipe") in `folder`."""
    done, settings = collect(recipe, folder), read_settings(folder)
    scores, primary = _scores(recipe, done)
    rows = _rows(recipe, done, scores)
    found = Findings(
        rows=rows,
        primary=primary,
        method=_method(recipe, rows),
        control=_held(recipe.control, primary, done),
        ceiling=_held(recipe.ceiling, primary, done),
    )
    origin = lineage(recipe, root, done)
    document = Document(
        schema_version=SCHEMA,
        recipe=name,
        variant=folder.name,
        scale=settings.scale,
        settings=dict(sorted(settings.settings.items())),
        reference=recipe.reference,
        notes=recipe.notes,
        headline=replace(headline(found), caution=recipe.caution),
        missing=tuple(s.name for s in recipe.stages if s.name not in done),
        baseline=recipe.baseline,
        primary=primary.name if primary else None,
        scores=scores,
        rows=rows,
        stages=tuple(_entry(name, stage) for name, stage in done.items()),
        curves=_curves(recipe, done),
        pictures=_figures(recipe, done),
        exported=_exported(done),
        lineage=origin,
        environments=_environments(done),
        commands=commands(name, settings, origin.commit, recipe),
        studies=tuple(_study(title, stages, done) for title, stages in recipe.studies.items()),
        method=found.method,
        control=found.control,
        ceiling=found.ceiling,
    )
    document = replace(document, costlier=costlier(document))
    return replace(document, diagnosis=diagnose(document, recipe))


def _scores(recipe: Recipe, done: Mapping[str, Finished]) -> tuple[tuple[Score, ...], Score | None]:
    """Every score in the order evaluations give them, the baseline's first; and the primary one."""
    order = sorted(recipe.rows, key=lambda title: title != recipe.baseline)
    stages = [done[s] for row in order for s in recipe.rows[row].stages if s in done]
    scores: dict[str, Score] = {}
    for score in (score for stage in stages for score in stage.declared.scores):
        scores.setdefault(score.name, score)
    reproducible = dict.fromkeys(n for s in stages for n in s.reproducible if n in scores)
    first = (scores[n] for n in reproducible if not scores[n].cost and scores[n].directed)
    return tuple(scores.values()), next(first, None)


def _rows(recipe: Recipe, done: Mapping[str, Finished], scores: Sequence[Score]) -> tuple[Row, ...]:
    timed = timed_in_turns(recipe, done)
    rows = tuple(
        replace(_row(recipe, name, done, scores), timed=timed.get(name, {})) for name in recipe.rows
    )
    return corrected(rows, _method(recipe, rows))


def corrected(rows: Sequence[Row], method: str) -> tuple[Row, ...]:
    """The rows with the differences of students other than the method corrected for their number,
    score by score.
    """
    tested = [i for i, row in enumerate(rows) if row.compared and row.name != method]
    gaps = [dict(row.differences) for row in rows]
    for score in dict.fromkeys(name for i in tested for name in gaps[i]):
        having = [i for i in tested if score in gaps[i]]
        for i, gap in zip(having, holm([gaps[i][score] for i in having]), strict=True):
            gaps[i][score] = gap
    return tuple(replace(row, differences=gap) for row, gap in zip(rows, gaps, strict=True))


def _method(recipe: Recipe, rows: Sequence[Row]) -> str:
    """The row the recipe names, else the only student there is."""
    students = [row.name for row in rows if row.compared]
    return recipe.method or (students[0] if len(students) == 1 else "")


def _held(bound: Bound | None, primary: Score | None, done: Mapping[str, Finished]) -> Held | None:
    """A bound's mean over the stages that have it; None where none has, or where it is another
    score than the primary one.
    """
    if bound is None or primary is None or bound.score != primary.name:
        return None
    stages = [done[stage] for stage in bound.stages if stage in done]
    value = _mean(stages, bound.row, bound.score)
    if value is None:
        return None
    declared = {score.name: score for stage in stages for score in stage.declared.scores}
    counts = {
        declared[name].label: mean
        for name in bound.counts
        if (mean := _mean(stages, "", name)) is not None
    }
    return Held(name=bound.name, value=value, enough=bound.enough, counts=counts)


def _mean(stages: Sequence[Finished], row: str, name: str) -> float | None:
    found = [v for stage in stages if (v := stage.values.get((row, name))) is not None]
    return statistics.fmean(found) if found else None


def _row(recipe: Recipe, name: str, done: Mapping[str, Finished], scores: Sequence[Score]) -> Row:
    stages = recipe.rows[name].stages
    seeds = tuple(Seed(stage=s, scores=done[s].scores) for s in stages if s in done)
    values = {
        s.name: [seed.scores[s.name] for seed in seeds if s.name in seed.scores] for s in scores
    }
    differences = {s.name: difference(recipe, name, s.name, done) for s in scores}
    return Row(
        name=name,
        kind=recipe.rows[name].kind,
        stages=stages,
        seeds=seeds,
        scores={score: summarize(given) for score, given in values.items() if given},
        differences={score: gap for score, gap in differences.items() if gap is not None},
        tables=_tabled([done[stage] for stage in stages if stage in done]),
    )


def _tabled(given: Sequence[Finished]) -> tuple[Value, ...]:
    """The values that have a row of a table, over the seeds given."""
    found: dict[tuple[str, str], list[float]] = {}
    for stage in given:
        for (row, name), value in stage.values.items():
            if row:
                found.setdefault((row, name), []).append(value)
    return tuple(
        Value(row=row, score=name, summary=summarize(values))
        for (row, name), values in found.items()
    )


def _entry(name: str, stage: Finished) -> StageEntry:
    run = stage.run
    return StageEntry(
        name=name,
        kind=stage.file.kind,
        key=stage.file.key,
        seconds=run.seconds if run else None,
        started=run.started if run else None,
        device=run.device if run else None,
        nproc=run.nproc if run else None,
        resumed_at=run.resumed_at if run else None,
        measured=run.measured if run else {},
        inputs=stage.file.inputs,
        outputs=stage.file.outputs,
        quantities=run.declared.scores if run and "refreshes" in run.measured else (),
    )


def _curves(recipe: Recipe, done: Mapping[str, Finished]) -> tuple[Curve, ...]:
    evaluated = {
        _evaluated(recipe, stage): title
        for title, row in recipe.rows.items()
        for stage in row.stages
    }
    return tuple(
        Curve(stage=name, row=evaluated.get(name, ""), columns=stage.curves)
        for name, stage in done.items()
        if stage.curves
    )


def _evaluated(recipe: Recipe, name: str) -> str:
    """The stage that made the model an evaluation is about."""
    ref = evaluated_model(recipe.stage(name))
    return "" if ref.startswith(OUTSIDE) else ref.partition(".")[0]


def _study(title: str, stages: tuple[str, ...], done: Mapping[str, Finished]) -> Study:
    given = [done[stage] for stage in stages if stage in done]
    scores: dict[str, Score] = {}
    values: dict[tuple[str, str], list[float]] = {}
    for stage in given:
        for score in stage.declared.scores:
            scores.setdefault(score.name, score)
        for place, value in stage.values.items():
            values.setdefault(place, []).append(value)
    return Study(
        title=title,
        stages=stages,
        scores=tuple(scores.values()),
        values=tuple(
            Value(row=row, score=name, summary=summarize(found))
            for (row, name), found in values.items()
        ),
    )


def _figures(recipe: Recipe, done: Mapping[str, Finished]) -> tuple[FigureFile, ...]:
    """Those of the first finished seed of each row and study: more would only repeat them."""
    shown = [(title, row.stages, False) for title, row in recipe.rows.items()]
    shown += [(title, stages, True) for title, stages in recipe.studies.items()]
    first = [
        (row, next((s for s in stages if s in done), None), study) for row, stages, study in shown
    ]
    return tuple(
        FigureFile(
            stage=stage,
            row=row,
            name=Path(path).stem,
            path=path,
            plot=Path(path).parent.name == PLOTS,
            study=study,
        )
        for row, stage, study in first
        if stage is not None
        for path in done[stage].figures
    )


def _exported(done: Mapping[str, Finished]) -> tuple[ExportedFiles, ...]:
    return tuple(
        ExportedFiles(stage=name, port=port, files=files, use=stage.uses.get(port, ""))
        for name, stage in done.items()
        for port, files in stage.files.items()
    )


def _environments(done: Mapping[str, Finished]) -> tuple[Environment, ...]:
    groups: dict[str, list[str]] = {}
    for name, stage in done.items():
        if stage.run is not None and stage.run.environment:
            groups.setdefault(json.dumps(stage.run.environment, sort_keys=True), []).append(name)
    return tuple(
        Environment(stages=tuple(names), values=json.loads(text)) for text, names in groups.items()
    )


def commands(
    name: str, settings: SettingsFile, commit: str | None, recipe: Recipe
) -> tuple[str, ...]:
    """What to type for the same run in a new clone."""
    refs = [ref for stage in recipe.stages for ref in stage.inputs.values()]
    data = sorted({ref[5:].partition("/")[0] for ref in refs if ref.startswith("data:")})
    run = ["uv", "run", "stillhouse", "run", name, "--scale", settings.scale]
    for key, value in sorted(settings.settings.items()):
        run += ["--set", f"{key}={argument(value)}"]
    return (
        *([f"git checkout {commit}"] if commit else []),
        "uv sync --locked",
        *([shlex.join(["uv", "run", "stillhouse", "data", "pull", *data])] if data else []),
        shlex.join(run),
    )


def argument(value: Any) -> str:  # Any: a JSON value
    """A setting's value as `--set` reads it: a list as "a,b" where that can be read again."""
    match value:
        case str():
            return value
        case [_, _, *_] if all(_plain(item) for item in value):
            return ",".join(item if isinstance(item, str) else json.dumps(item) for item in value)
        case _:
            return json.dumps(value, ensure_ascii=False)


def _plain(item: object) -> bool:
    """Whether an item of a list is itself, alone between commas."""
    if isinstance(item, str):
        return item == item.strip() != "" and "," not in item and not item.startswith("[")
    return isinstance(item, (int, float))
