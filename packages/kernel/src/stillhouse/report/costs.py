"""What students take more of than their teacher."""

from collections.abc import Sequence

from stillhouse.metrics.known import COMPUTE
from stillhouse.metrics.scores import Score
from stillhouse.report.document import Row
from stillhouse.report.units import inside, ratio

# two timings of one network differ by that on a machine that does other things, too
TIMING = 1.1


def costlier(rows: Sequence[Row]) -> tuple[str, ...]:
    """A sentence for each cost that some student has more of than the largest teacher; of a
    latency, where every seed is slower.
    """
    return tuple(sentence for cost in COMPUTE if (sentence := _sentence(rows, cost)))


def _sentence(rows: Sequence[Row], cost: Score) -> str:
    name = cost.name
    teachers = [v for r in rows if r.kind == "teacher" and name in r.scores for v in _all(r, name)]
    students = [row for row in rows if row.kind != "teacher" and name in row.scores]
    if not teachers or not students:
        return ""
    most = max(teachers) * (TIMING if cost.unit == "ms" else 1)
    over = {
        row.name: ratio(row.scores[name].mean / max(teachers))
        for row in students
        if min(_all(row, name)) > most
    }
    if not over:
        return ""
    same = len(over) == len(students) and len(set(over.values())) == 1
    said = (
        f"every student, {next(iter(over.values()))}"
        if same
        else ", ".join(f"{row} {times}" for row, times in over.items())
    )
    return f"More {inside(cost.label)} than the teacher: {said}."


def _all(row: Row, name: str) -> tuple[float, ...]:
    return row.scores[name].values
