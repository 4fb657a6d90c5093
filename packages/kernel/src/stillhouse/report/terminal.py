"""The main table as it fits a terminal of 80 columns: what the method bought, and at what cost."""

from collections.abc import Sequence

from stillhouse.report import units
from stillhouse.report.document import Document, Row
from stillhouse.report.tables import STAR, Cell, Column, Line, Table, filled, nothing

COSTS = ("parameters", "macs", "latency_b1_ms")
SHORT = {"parameters": "Params", "latency_b1_ms": "Latency"}


def brief(document: Document) -> Table:
    """The primary score, its difference to the baseline with half its 95 % interval, parameters,
    MACs and the latency of one sample.
    """
    primary = document.score(document.primary or "")
    shown = [n for n in COSTS if any(n in row.scores for row in document.rows)]
    columns = [Column(label=SHORT.get(n, units.unit(n).label), unit=_symbol(n)) for n in shown]
    if primary is not None:
        points = units.unit(primary.name).points
        score = Column(label=primary.label, unit=primary.unit)
        columns = [score, Column(label="Difference", unit=points), *columns]
    lines = tuple(Line(head=row.name, cells=_cells(row, document, shown)) for row in document.rows)
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


def _symbol(name: str) -> str:
    return units.unit(name).symbol


def _cells(row: Row, document: Document, costs: Sequence[str]) -> tuple[Cell, ...]:
    names = [name for name in (document.primary, *costs) if name is not None]
    values = [
        Cell(text=units.number(row.scores[n].mean, n)) if n in row.scores else nothing()
        for n in names
    ]
    if document.primary is None:
        return tuple(values)
    return (values[0], _gap(row, document.primary), *values[1:])


def _gap(row: Row, name: str) -> Cell:
    """A difference and half its interval: Student's t intervals lie evenly about the mean."""
    gap = row.differences.get(name)
    if row.kind == "baseline" or gap is None:
        return nothing("baseline") if row.kind == "baseline" else nothing()
    text = units.signed(gap.mean, name)
    if gap.high is None:
        return Cell(text=text)
    half = units.number(gap.high - gap.mean, name)
    return Cell(text=f"{text} \N{PLUS-MINUS SIGN}{half}{f' {STAR}' if gap.beyond_noise() else ''}")
