"""Finished reports side by side: the rows they share, and what the runs behind them differ in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import BadSetting
from stillhouse.metrics import units
from stillhouse.metrics.scores import Score
from stillhouse.report.document import Document, load
from stillhouse.report.statistics import Difference, Summary, unpaired
from stillhouse.report.tables import NONE, Cell, Column, Line, Table, gap_cell, spread


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One score of one row in every report; `difference` is the last minus the first, unpaired."""

    row: str
    score: Score
    values: tuple[Summary | None, ...]
    difference: Difference | None


@dataclass(frozen=True, kw_only=True)
class Change:
    """A fact that is not the same in every report."""

    what: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ComparedReports:
    """Reports by name, in the order given."""

    names: tuple[str, ...]
    rows: tuple[Compared, ...]
    changes: tuple[Change, ...]

    def tables(self) -> tuple[Table, ...]:
        """The scores, and where there are any, the changes."""
        return (_scores(self), *([_changes(self)] if self.changes else []))


def compare(reports: Sequence[Path]) -> ComparedReports:
    """Compare report.json files (or the folders, or report.html files, beside them), at least two.

    Raises MissingData, CorruptArtifact, or BadSetting for fewer than two.
    """
    if len(reports) < 2:
        raise BadSetting(f"compare: at least two reports are needed (got {len(reports)})")
    documents = [load(path) for path in reports]
    rows = dict.fromkeys(row.name for d in documents for row in d.rows)
    scores = {s.name: s for d in documents for s in d.scores}
    found = [_compared(row, score, documents) for row in rows for score in scores.values()]
    return ComparedReports(
        names=_names(documents, reports),
        rows=tuple(c for c in found if any(value is not None for value in c.values)),
        changes=_differing(documents),
    )


def _names(documents: Sequence[Document], reports: Sequence[Path]) -> tuple[str, ...]:
    titles = [d.title for d in documents]
    if len(set(titles)) == len(titles):
        return tuple(titles)
    return tuple(f"{title} ({path})" for title, path in zip(titles, reports, strict=True))


def _compared(row: str, score: Score, documents: Sequence[Document]) -> Compared:
    found = [document.row(row) for document in documents]
    values = tuple(r.scores.get(score.name) if r else None for r in found)
    first, last = values[0], values[-1]
    gap = unpaired(last.values, first.values) if first and last else None
    return Compared(row=row, score=score, values=values, difference=gap)


def _differing(documents: Sequence[Document]) -> tuple[Change, ...]:
    facts = [_facts(document) for document in documents]
    names = dict.fromkeys(name for fact in facts for name in fact)
    changes = (Change(what=n, values=tuple(f.get(n, NONE) for f in facts)) for n in names)
    return tuple(change for change in changes if len(set(change.values)) > 1)


def _facts(document: Document) -> Mapping[str, str]:
    lineage = document.lineage
    facts = {
        "recipe": document.recipe,
        "scale": document.scale,
        **{f"setting {k}": json.dumps(v) for k, v in document.settings.items()},
        "data read": ", ".join(document.read) or NONE,
        "data version": lineage.data or NONE,
        "git commit": lineage.commit or NONE,
        "uv.lock": lineage.lock or NONE,
        "code": lineage.code,
        "unfinished stages": str(len(document.missing)),
    }
    for i, environment in enumerate(document.environments):
        for name in ("python", "torch", "cpu", "gpu", "threads"):
            facts[f"{name}{f' ({i + 1})' if i else ''}"] = str(environment.values.get(name, NONE))
    return facts


def _scores(comparison: ComparedReports) -> Table:
    heads = [*comparison.names, "Difference"]
    return Table(
        title="Scores",
        first="Model: score",
        columns=tuple(Column(label=head) for head in heads),
        lines=tuple(_line(c) for c in comparison.rows),
    )


def _line(compared: Compared) -> Line:
    score = compared.score
    cells = [Cell(text=NONE) if v is None else spread(v, score) for v in compared.values]
    gap = compared.difference
    last = Cell(text=NONE) if gap is None else gap_cell(gap, score)
    return Line(head=f"{compared.row}: {units.headed(score)}", cells=(*cells, last))


def _changes(comparison: ComparedReports) -> Table:
    return Table(
        title="What differs",
        first="Fact",
        columns=tuple(Column(label=name, number=False) for name in comparison.names),
        lines=tuple(
            Line(head=c.what, cells=tuple(Cell(text=value) for value in c.values))
            for c in comparison.changes
        ),
    )
