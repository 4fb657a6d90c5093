"""Tables of a study: scores about the method, not about one model."""

from collections.abc import Mapping, Sequence

from stillhouse.metrics.scores import Score
from stillhouse.report import units
from stillhouse.report.document import Study
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


def _grid(study: Study, columns: Sequence[Score]) -> Table:
    rows = dict.fromkeys(value.row for value in study.values if value.row)
    return Table(
        title=study.title,
        first="",
        columns=tuple(Column(label=_label(score), unit=score.symbol) for score in columns),
        lines=tuple(
            Line(head=row, cells=tuple(_cell(study, row, score) for score in columns))
            for row in rows
        ),
    )


def _list(study: Study, scores: Sequence[Score]) -> Table:
    lines = [
        Line(head=_label(score), cells=(_cell(study, "", score, unit=True),)) for score in scores
    ]
    return Table(title=study.title, first="", columns=(Column(label="Value"),), lines=tuple(lines))


def _cell(study: Study, row: str, score: Score, *, unit: bool = False) -> Cell:
    found = {value.score: value.summary for value in study.values if value.row == row}
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
