"""Tables of a study: scores about the method, not about one model."""

from collections.abc import Mapping, Sequence

from stillhouse.metrics.scores import lower_is_better
from stillhouse.report import units
from stillhouse.report.document import Study
from stillhouse.report.statistics import Summary
from stillhouse.report.tables import Cell, Column, Line, Table, nothing, spread

LOW, HIGH = "_low", "_high"


def study_tables(study: Study) -> tuple[Table, ...]:
    """A table of the scores named "line/score", with a line per `line`; one of the other scores.

    `<score>_low` and `<score>_high` become the interval beside `<score>`.
    """
    shown = [n for n in study.scores if not _bound(n, study.scores)]
    grid = [n for n in shown if "/" in n]
    plain = [n for n in shown if "/" not in n]
    tables = [_grid(study, grid)] if grid else []
    return (*tables, _list(study, plain)) if plain else tuple(tables)


def _bound(name: str, scores: Mapping[str, Summary]) -> bool:
    """Whether a score is the end of another one's interval."""
    return any(name.endswith(end) and name.removesuffix(end) in scores for end in (LOW, HIGH))


def _grid(study: Study, names: Sequence[str]) -> Table:
    lines = dict.fromkeys(name.rpartition("/")[0] for name in names)
    columns = dict.fromkeys(name.rpartition("/")[2] for name in names)
    return Table(
        title=study.title,
        first="",
        columns=tuple(Column(label=_label(c), unit=units.unit(c).symbol) for c in columns),
        lines=tuple(
            Line(head=line, cells=tuple(_cell(study, f"{line}/{c}", c) for c in columns))
            for line in lines
        ),
    )


def _list(study: Study, names: Sequence[str]) -> Table:
    lines = [
        Line(head=_label(name), cells=(_cell(study, name, name, unit=True),)) for name in names
    ]
    return Table(title=study.title, first="", columns=(Column(label="Value"),), lines=tuple(lines))


def _cell(study: Study, key: str, name: str, *, unit: bool = False) -> Cell:
    summary = study.scores.get(key)
    if summary is None:
        return nothing()
    low, high = study.scores.get(key + LOW), study.scores.get(key + HIGH)
    if len(summary.values) == 1 and low is not None and high is not None:
        note = units.interval(low.mean, high.mean, name)
    else:
        note = spread(summary, name).note
    write = units.quantity if unit else units.number
    return Cell(text=write(summary.mean, name), note=note)


def _label(name: str) -> str:
    direction = " (lower is better)" if lower_is_better(name) else ""
    return f"{units.unit(name).label}{direction}"
