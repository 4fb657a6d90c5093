"""Tables of what metrics give by row: of studies, and of the models that the report is about."""

from collections.abc import Mapping, Sequence

from stillhouse.metrics import units
from stillhouse.metrics.scores import Score
from stillhouse.report.document import Document, Study, Value
from stillhouse.report.statistics import Summary
from stillhouse.report.tables import Cell, Column, Line, Table, nothing, spread


def study_tables(study: Study) -> tuple[Table, ...]:
    """A table of the scores that have a row; one of the other scores.

    The `ends` of a score become the interval beside it.
    """
    ends = {name for score in study.scores for name in score.ends or ()}
    shown = [score for score in study.scores if score.name not in ends]
    named = {(value.row != "", value.score) for value in study.values}
    grid = [score for score in shown if (True, score.name) in named]
    plain = [score for score in shown if (False, score.name) in named]
    tables = [_grid(study, grid)] if grid else []
    return (*tables, _list(study, plain)) if plain else tuple(tables)


def row_tables(document: Document) -> tuple[Table, ...]:
    """A table of each score that the metrics of the report's rows give by row of a table: a line a
    model, a column a row.
    """
    ends = {name for score in document.scores for name in score.ends or ()}
    given = {value.score for row in document.rows for value in row.tables}
    shown = [s for s in document.scores if s.name in given and s.name not in ends]
    return tuple(_of_models(document, score) for score in shown)


def _of_models(document: Document, score: Score) -> Table:
    columns = list(
        dict.fromkeys(v.row for row in document.rows for v in row.tables if v.score == score.name)
    )
    lines = [
        Line(
            head=row.name,
            row=i,
            cells=tuple(_cell(row.tables, column, score) for column in columns),
        )
        for i, row in enumerate(document.rows)
        if any(value.score == score.name for value in row.tables)
    ]
    return Table(
        title=_label(score),
        first="Model",
        columns=tuple(Column(label=column, unit=score.symbol) for column in columns),
        lines=tuple(lines),
    )


def _grid(study: Study, columns: Sequence[Score]) -> Table:
    rows = dict.fromkeys(value.row for value in study.values if value.row)
    return Table(
        title=study.title,
        first="",
        columns=tuple(Column(label=_label(score), unit=score.symbol) for score in columns),
        lines=tuple(
            Line(head=row, cells=tuple(_cell(study.values, row, score) for score in columns))
            for row in rows
        ),
    )


def _list(study: Study, scores: Sequence[Score]) -> Table:
    lines = [
        Line(head=_label(score), cells=(_cell(study.values, "", score, unit=True),))
        for score in scores
    ]
    return Table(title=study.title, first="", columns=(Column(label="Value"),), lines=tuple(lines))


def _cell(values: Sequence[Value], row: str, score: Score, *, unit: bool = False) -> Cell:
    found = {value.score: value.summary for value in values if value.row == row}
    if score.name not in found:
        return nothing()
    summary, write = found[score.name], units.quantity if unit else units.number
    return Cell(text=write(summary.mean, score), note=_note(found, score, summary))


def _note(found: Mapping[str, Summary], score: Score, summary: Summary) -> str:
    """The interval of one seed where the study gives one, else the deviation over seeds."""
    ends = [found[name] for name in score.ends or () if name in found]
    if len(summary.values) == 1 and len(ends) == 2:
        return units.interval(ends[0].mean, ends[1].mean, score)
    return spread(summary, score).note


def _label(score: Score) -> str:
    return f"{score.label} (lower is better)" if score.lower_is_better else score.label
