"""report.json: all a report says, as values; HTML, Markdown and figures are drawn from it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydantic

from stillhouse.errors import CorruptArtifact, MissingData
from stillhouse.metrics.scores import Score
from stillhouse.recipe import OUTSIDE, Kind
from stillhouse.report.collect import Product, Source
from stillhouse.report.older import renamed, upgraded
from stillhouse.report.statistics import Difference, Summary

SCHEMA, OLDER = 2, 1
FILE = "report.json"


@dataclass(frozen=True, kw_only=True)
class Seed:
    """One finished evaluation of a row."""

    stage: str
    scores: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the main table; `differences` are to the baseline row, by score."""

    name: str
    kind: Kind
    stages: tuple[str, ...]  # one a seed, finished or not
    seeds: tuple[Seed, ...]
    scores: Mapping[str, Summary]
    differences: Mapping[str, Difference]
    # latencies taken in turns with a teacher's, by a study
    timed: Mapping[str, float] = field(default_factory=dict[str, float])
    tables: tuple["Value", ...] = ()  # what its metrics give by row of a table

    @property
    def compared(self) -> bool:
        """Whether the row is one that is held against the baseline."""
        return self.kind in ("student", "compressed")


@dataclass(frozen=True, kw_only=True)
class StageEntry:
    """What a finished stage read, left and cost; costs are None where their record is lost."""

    name: str
    kind: str
    key: str
    seconds: float | None
    started: str | None
    device: str | None
    nproc: int | None
    resumed_at: int | None
    measured: Mapping[str, Any]  # Any: JSON values
    inputs: Mapping[str, Source]
    outputs: Mapping[str, Product]
    quantities: tuple[Score, ...] = ()  # what a training records of its refreshes


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Loss and its terms by step, and the row that evaluates this training ("" where none does)."""

    stage: str
    row: str
    columns: Mapping[str, tuple[float | None, ...]]


@dataclass(frozen=True, kw_only=True)
class FigureFile:
    """A figure's file, relative to the run's folder, of the row or study named `row`.

    A `plot` shows numbers only; every other figure shows samples of the data.
    """

    stage: str
    row: str
    name: str
    path: str
    plot: bool = False
    study: bool = False


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value of a table: of its row so named ("" where a study's value has none) and score."""

    row: str
    score: str
    summary: Summary


@dataclass(frozen=True, kw_only=True)
class Study:
    """Scores about the method: evaluations that belong to no row of the main table."""

    title: str
    stages: tuple[str, ...]  # one a seed, finished or not
    scores: tuple[Score, ...]
    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class ExportedFiles:
    """The files of a converted or exported model, with their bytes; `use` is the Python of its card
    that runs it with ONNX Runtime alone, "" where there is none.
    """

    stage: str
    port: str
    files: Mapping[str, int]
    use: str = ""


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """The versions of data and code in the checkout the report was made in; None where it has none.

    `stale` says, a sentence each, which stages do not belong to this code or to each other.
    """

    data: str | None
    commit: str | None
    changed: bool  # tracked files differ from the commit
    lock: str | None
    code: str
    stillhouse: str
    stale: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What some of the stages ran on."""

    stages: tuple[str, ...]
    values: Mapping[str, Any]  # Any: JSON values


@dataclass(frozen=True, kw_only=True)
class Headline:
    """What the numbers say, in a sentence, what that rests on, and why it may mislead."""

    sentence: str
    detail: tuple[str, ...]
    withheld: bool = False  # the scores bear no comparison: the sentence says why
    caution: str = ""

    @property
    def text(self) -> str:
        """The sentence with its caution."""
        return f"{self.sentence} {self.caution}".strip()


@dataclass(frozen=True, kw_only=True)
class Held:
    """A bound of the primary score: a trivial control's score, or a perfect model's."""

    name: str
    value: float
    enough: float  # of a ceiling
    counts: Mapping[str, float] = field(default_factory=dict[str, float])  # by label


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A likely cause of a student that is no better than alone."""

    check: str
    figure: str
    remedy: str


@dataclass(frozen=True, kw_only=True)
class Document:
    """A report. `primary` is the first score that has a better direction and is no cost.

    It is None while nothing is evaluated.
    """

    schema_version: int
    recipe: str
    variant: str
    scale: str
    settings: Mapping[str, Any]  # Any: JSON values; what differs from the scale's preset
    reference: str
    notes: tuple[str, ...]
    headline: Headline
    missing: tuple[str, ...]
    baseline: str
    primary: str | None
    scores: tuple[Score, ...]
    rows: tuple[Row, ...]
    stages: tuple[StageEntry, ...]
    curves: tuple[Curve, ...]
    pictures: tuple[FigureFile, ...]
    exported: tuple[ExportedFiles, ...]
    lineage: Lineage
    environments: tuple[Environment, ...]
    commands: tuple[str, ...]
    studies: tuple[Study, ...] = ()
    method: str = ""  # the row that is the system itself; "" where the recipe names none
    control: Held | None = None
    ceiling: Held | None = None
    costlier: tuple[str, ...] = ()  # a sentence each: what students take more of than the teacher
    diagnosis: tuple[Finding, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.recipe}@{self.variant}"

    @property
    def read(self) -> tuple[str, ...]:
        """What the finished stages read from outside the recipe."""
        refs = (source.ref for stage in self.stages for source in stage.inputs.values())
        return tuple(dict.fromkeys(ref for ref in refs if ref.startswith(OUTSIDE)))

    def gaps(self, name: str) -> list[Difference]:
        """The differences of the rows in a score."""
        return [row.differences[name] for row in self.rows if name in row.differences]

    def score(self, name: str) -> Score | None:
        return next((s for s in self.scores if s.name == name), None)

    def row(self, name: str) -> Row | None:
        return next((r for r in self.rows if r.name == name), None)


def dump(document: Document) -> str:
    """The document as JSON text, a line a field or an item: the same document is the same text."""
    plain = pydantic.TypeAdapter(Document).dump_python(document, mode="json")
    lines = ",\n".join(f"{json.dumps(name)}:{_lined(value)}" for name, value in plain.items())
    return f"{{\n{lines}\n}}\n"


def _lined(value: Any) -> str:  # Any: JSON values
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[\n" + ",\n".join(map(_compact, value)) + "\n]"
    return _compact(value)


def _compact(value: Any) -> str:  # Any: JSON values
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def load(path: Path) -> Document:
    """The document of a report.json, or of the folder or report.html beside it.

    Raises MissingData where there is none, CorruptArtifact where it cannot be read.
    """
    file = path / FILE if path.is_dir() else path.with_name(FILE)
    if not file.is_file():
        raise MissingData(f"{file} not found. Run: stillhouse report RECIPE[@VARIANT]")
    return parse(file.read_text(), where=str(file))


def parse(text: str, *, where: str) -> Document:
    """The document of a report.json's text; `where` is what an error names."""
    again = "write it again with: stillhouse report RECIPE[@VARIANT]"
    try:
        record = json.loads(text)
        if record.get("schema_version") == OLDER:
            record = upgraded(record)
        record = renamed(record)
        if (found := record.get("schema_version")) != SCHEMA:
            raise CorruptArtifact(f"{where}: schema {found}, this version reads {SCHEMA}; {again}")
        return pydantic.TypeAdapter(Document).validate_python(record)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptArtifact(f"{where}: not a report ({reason}); {again}") from error
