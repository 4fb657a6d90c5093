"""What students take more of than their teacher."""

from collections.abc import Sequence

from stillhouse.metrics.known import COMPUTE
from stillhouse.metrics.scores import Score
from stillhouse.metrics.units import inside, ratio
from stillhouse.report.document import Document, Row
from stillhouse.report.timings import TIME, latencies

# two timings of one network differ by that on a machine that does other things, too
TIMING = 1.1


def costlier(document: Document) -> tuple[str, ...]:
    """A sentence for each cost that some student has more of than the largest teacher; of a
    latency, where the two may be compared.
    """
    return tuple(sentence for cost in COMPUTE if (sentence := _sentence(document, cost)))


def _sentence(document: Document, cost: Score) -> str:
    students = [r for r in document.rows if r.kind != "teacher" and cost.name in r.scores]
    shares = {row.name: _share(document, row, cost) for row in students}
    least = TIMING if cost.unit == TIME else 1
    over = {row: ratio(share) for row, share in shares.items() if share > least}
    if not over:
        return ""
    same = len(over) == len(students) and len(set(over.values())) == 1
    listed = (
        f"every student, {next(iter(over.values()))}"
        if same
        else ", ".join(f"{row} {times}" for row, times in over.items())
    )
    return f"More {inside(cost.label)} than the teacher: {listed}."


def _share(document: Document, row: Row, cost: Score) -> float:
    """How many times the largest teacher's cost the row has in every seed; 0 where it has less, or
    where that is unknown.
    """
    teachers = [r for r in document.rows if r.kind == "teacher" and cost.name in r.scores]
    if not teachers:
        return 0.0
    if cost.unit == TIME:
        return _slower(document, row, teachers, cost)
    most = max(value for teacher in teachers for value in teacher.scores[cost.name].values)
    summary = row.scores[cost.name]
    return summary.mean / most if min(summary.values) > most > 0 else 0.0


def _slower(document: Document, row: Row, teachers: Sequence[Row], cost: Score) -> float:
    """A latency's share of that of every teacher, or of those that were timed in turns with it."""
    beside = [t for t in teachers if cost.name in row.timed and cost.name in t.timed]
    pairs = [latencies(document, row, teacher, cost) for teacher in beside or teachers]
    return min((0.0 if pair is None else pair[0] / pair[1] for pair in pairs), default=0.0)
