"""The gate of a recipe, from params.yaml, and whether a run's report passes it."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic
import yaml

from stillhouse.errors import BadSetting, UnknownName
from stillhouse.metrics.scores import Score
from stillhouse.recipe import OUTSIDE, Recipe, Scoring, Stage
from stillhouse.report.document import Document, Row
from stillhouse.report.statistics import Summary

EXAMPLE = "gate: {RECIPE: {minimum: {accuracy: 0.9}, not_worse: [accuracy]}}"


class Gate(pydantic.BaseModel):
    """What a student must reach to be promoted; scores are means over the seeds of one row."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    row: str = ""  # empty: the row of the method itself
    minimum: Mapping[str, pydantic.FiniteFloat] = {}
    maximum: Mapping[str, pydantic.FiniteFloat] = {}
    not_worse: tuple[str, ...] = ()  # than the promoted student's, beyond its interval


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a row passes. `reasons` say what is wrong with a refused one, what holds else."""

    accepted: bool
    row: str
    reasons: tuple[str, ...]
    scores: Mapping[str, float] = field(default_factory=dict[str, float])  # the row's means


@dataclass(frozen=True, kw_only=True)
class Standard:
    """The promoted student that a candidate is compared with."""

    run: str
    row: str
    report: Document


def read_gate(text: str, recipe: str, *, where: str = "params.yaml") -> Gate | None:
    """The gate of "domain/recipe" in the text of a params.yaml; None where it has none.

    Raises UnknownName or BadSetting for a gate that cannot be used.
    """
    try:
        gates: Any = (yaml.safe_load(text) or {}).get("gate") or {}  # Any: YAML
        found = gates.get(recipe)
    except (yaml.YAMLError, AttributeError) as error:
        raise BadSetting(f"{where}: gate: expected {EXAMPLE}") from error
    return (
        None if found is None and recipe not in gates else _gate(found, f"{where}: gate {recipe}")
    )


def _gate(found: Any, where: str) -> Gate:  # Any: YAML
    if not isinstance(found, dict) or not found:
        raise BadSetting(f"{where}: give at least one of minimum, maximum, not_worse")
    for key in map(str, found):
        if key not in Gate.model_fields:
            raise UnknownName("key", key, Gate.model_fields, where=where)
    try:
        gate = Gate.model_validate(found)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BadSetting(f"{where}: {place}: {first['msg']} (got {first['input']!r})") from error
    if not (gate.minimum or gate.maximum or gate.not_worse):
        raise BadSetting(f"{where}: give at least one of minimum, maximum, not_worse")
    return gate


def missing_gate(recipe: str) -> BadSetting:
    """What to say where a recipe has no gate."""
    return BadSetting(
        f"{recipe} has no gate in params.yaml, so none of its students is promoted; "
        f"write one, as in {EXAMPLE.replace('RECIPE', recipe)}"
    )


def rows_of_recipe(recipe: Recipe) -> tuple[str, ...]:
    """Rows of the student that the recipe exports; empty where that is unknown."""
    exports = [stage.name for stage in recipe.stages if "model" in stage.outputs]
    inputs = {stage.name: stage.inputs for stage in recipe.stages}
    return _exported(inputs, {title: row.stages for title, row in recipe.rows.items()}, exports)


def rows_of_report(report: Document) -> tuple[str, ...]:
    """As `rows_of_recipe`, of what has run."""
    exports = [stage.name for stage in report.stages if "model" in stage.outputs]
    inputs = {s.name: {p: source.ref for p, source in s.inputs.items()} for s in report.stages}
    return _exported(inputs, {row.name: row.stages for row in report.rows}, exports)


def _exported(
    inputs: Mapping[str, Mapping[str, str]],
    rows: Mapping[str, Sequence[str]],
    exports: Sequence[str],
) -> tuple[str, ...]:
    """Rows with an evaluation of the last exported model, or of the one that it was made from."""
    if not exports:
        return ()
    export = exports[-1]
    models = {ref for port, ref in inputs[export].items() if port != "data"} | {f"{export}.model"}
    models = {ref for ref in models if not ref.startswith(OUTSIDE)}
    return tuple(
        row
        for row, stages in rows.items()
        if any(models & set(_judged(inputs.get(stage, {}))) for stage in stages)
    )


def _judged(inputs: Mapping[str, str]) -> Iterator[str]:
    """What an evaluation is about: not its data, and its teacher only where nothing else is."""
    roles = [port for port in inputs if port != "data"]
    for port in roles:
        if port != "teacher" or len(roles) == 1:
            yield inputs[port]


def choose_row(
    gate: Gate, rows: Collection[str], exported: Sequence[str], *, method: str, where: str
) -> str:
    """The row that the gate is about: the one it names, else that of the recipe's `method`, else
    that of the exported student. Raises where the row it names is neither the method's nor the
    exported student's.
    """
    if gate.row and gate.row not in rows:
        raise UnknownName("row", gate.row, rows, where=where)
    own = tuple(dict.fromkeys([*([method] if method in rows else []), *exported]))
    if gate.row and own and gate.row not in own:
        raise BadSetting(
            f"{where}: row '{gate.row}' is not of the student that the recipe exports; "
            f"that is '{own[0]}'"
        )
    if gate.row or method in rows:
        return gate.row or method
    if len(exported) != 1:
        raise BadSetting(
            f"{where}: give row:, one of {', '.join(sorted(rows))}; "
            "which of them the recipe exports cannot be told"
        )
    return exported[0]


def check_scores(gate: Gate, known: Iterable[str], *, where: str) -> None:
    """Raises UnknownName for a score of the gate that is not among the known ones."""
    names = set(known)
    for score in (*gate.minimum, *gate.maximum, *gate.not_worse):
        if score not in names:
            raise UnknownName("score", score, names, where=where)


def scores_of_recipe(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """By row, the scores that its evaluations declare."""
    stages = {stage.name: stage for stage in recipe.stages}
    return {
        title: tuple(dict.fromkeys(score for name in row.stages for score in _given(stages[name])))
        for title, row in recipe.rows.items()
    }


def _given(stage: Stage) -> Iterator[str]:
    if isinstance(stage, Scoring):
        yield from (score.name for _, score in stage.declarations())


def decide(report: Document, gate: Gate, promoted: Standard | None) -> Decision:
    """Hold a report against a gate, and against the promoted student.

    Raises UnknownName or BadSetting where the gate does not fit the report.
    """
    where = f"params.yaml: gate {report.recipe}"
    rows, exported = [r.name for r in report.rows], rows_of_report(report)
    name = choose_row(gate, rows, exported, method=report.method, where=where)
    row = report.row(name)
    assert row is not None
    check_scores(gate, row.scores, where=f"{where}: row '{name}'")
    for score in gate.not_worse:
        declared = report.score(score)
        if declared is not None and not declared.directed:
            raise BadSetting(
                f"{where}: not_worse: no value of '{score}' is better than another; give it a "
                "minimum or a maximum"
            )
    checks = [*_limits(row, gate), *_compared(report, row, gate, promoted)]
    failed = tuple(words for held, words in checks if not held)
    return Decision(
        accepted=not failed,
        row=name,
        reasons=failed or tuple(words for _, words in checks),
        scores={score: summary.mean for score, summary in row.scores.items()},
    )


def _limits(row: Row, gate: Gate) -> Iterator[tuple[bool, str]]:
    # written so that NaN, which compares with nothing, never passes
    for score, limit in gate.minimum.items():
        mean = row.scores[score].mean
        yield mean >= limit, f"{score} {mean:.6g}, at least {limit:.6g} asked"
    for score, limit in gate.maximum.items():
        mean = row.scores[score].mean
        yield mean <= limit, f"{score} {mean:.6g}, at most {limit:.6g} asked"


def _compared(
    report: Document, row: Row, gate: Gate, promoted: Standard | None
) -> Iterator[tuple[bool, str]]:
    if promoted is None:
        if gate.not_worse:
            yield True, "no student was promoted before"
        return
    theirs = promoted.report.row(promoted.row)
    note = _other_inputs(report, promoted.report)
    for score in gate.not_worse:
        if theirs is None or score not in theirs.scores:
            yield False, f"{promoted.run}, which is promoted, has no {score} to compare with"
        else:
            declared = report.score(score)
            assert declared is not None  # a row's score
            held, words = _not_worse(declared, row.scores[score].mean, theirs.scores[score])
            yield held, f"{words} of {promoted.run}, which is promoted{note}"


def _not_worse(score: Score, mean: float, theirs: Summary) -> tuple[bool, str]:
    lower = score.lower_is_better
    bound = theirs.high if lower else theirs.low
    limit = theirs.mean if bound is None else bound
    what = "the mean" if bound is None else f"the {'upper' if lower else 'lower'} 95 % bound"
    held = mean <= limit if lower else mean >= limit
    side = "not worse than" if held else "worse than"
    return held, f"{score.name} {mean:.6g}, {side} {what} {limit:.6g}"


def _other_inputs(report: Document, promoted: Document) -> str:
    """Scores on other data differ not by the student alone."""
    if outside_digests(report) == outside_digests(promoted):
        return ""
    versions = [(each.lineage.data or "none")[:8] for each in (report, promoted)]
    if versions[0] == versions[1]:
        return " (the two runs read different inputs)"
    return f" (the scores are of different data: version {versions[0]}, promoted {versions[1]})"


def outside_digests(report: Document) -> dict[str, str]:
    """What a run read from outside its recipe, with its digest."""
    sources = (source for stage in report.stages for source in stage.inputs.values())
    return {s.ref: s.digest for s in sources if s.ref.startswith(OUTSIDE)}
