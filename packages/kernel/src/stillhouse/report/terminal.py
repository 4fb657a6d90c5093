"""The main table as it fits a terminal of 80 columns: what the method bought, and at what cost."""

from collections.abc import Sequence

from stillhouse.metrics import units
from stillhouse.metrics.known import LISTED, PARAMETERS, latency
from stillhouse.metrics.scores import Score
from stillhouse.report.document import Document, Row
from stillhouse.report.tables import STAR, Cell, Column, Line, Table, filled, nothing

SHORT = {PARAMETERS.name: "Params", latency(1).name: "Latency"}


def brief(document: Document) -> Table:
    """The primary score, its difference to the baseline with half its 95 % interval, parameters,
    MACs and the latency of one sample.
    """
    primary = document.score(document.primary or "")
    shown = [s for s in LISTED if any(s.name in row.scores for row in document.rows)]
    columns = [
        Column(label=SHORT.get(score.name, score.label), unit=score.symbol) for score in shown
    ]
    if primary is not None:
        score = Column(label=primary.label, unit=primary.symbol)
        columns = [score, Column(label="Difference", unit=primary.points), *columns]
    lines = tuple(Line(head=row.name, cells=_cells(row, primary, shown)) for row in document.rows)
    return filled(Table(title="Results", first="Model", columns=tuple(columns), lines=lines))


def legend(document: Document) -> str:
    """What the differences of the table are; "" without any."""
    gaps = document.gaps(document.primary or "")
    if not gaps:
        return ""
    if all(gap.p is None for gap in gaps):
        return f"Difference to {document.baseline}; one seed, so no interval."
    count = sum(gap.corrected is not None for gap in gaps)
    holm = f"; p of the {count} other rows by Holm" if count > 1 else ""
    return f"Difference to {document.baseline}, 95 % interval; {STAR} p < 0.05{holm}."


def _cells(row: Row, primary: Score | None, costs: Sequence[Score]) -> tuple[Cell, ...]:
    values = [
        Cell(text=units.number(row.scores[s.name].mean, s)) if s.name in row.scores else nothing()
        for s in (primary, *costs)
        if s is not None
    ]
    if primary is None:
        return tuple(values)
    return (values[0], _gap(row, primary), *values[1:])


def _gap(row: Row, score: Score) -> Cell:
    """A difference and half its interval: Student's t intervals lie evenly about the mean."""
    gap = row.differences.get(score.name)
    if row.kind == "baseline" or gap is None:
        return nothing("baseline") if row.kind == "baseline" else nothing()
    text = units.signed(gap.mean, score)
    if gap.high is None:
        return Cell(text=text)
    half = units.number(gap.high - gap.mean, score)
    return Cell(text=f"{text} \N{PLUS-MINUS SIGN}{half}{f' {STAR}' if gap.beyond_noise() else ''}")
