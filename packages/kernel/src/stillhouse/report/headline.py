"""The sentence at the top: what distillation bought, computed from the rows."""

from collections.abc import Mapping, Sequence

from stillhouse.report.document import Headline, Row, Score
from stillhouse.report.statistics import Difference
from stillhouse.report.units import (
    difference,
    inside,
    interval,
    number,
    quantity,
    seeds,
    significant,
    unit,
)

COMPUTE = ("macs", "parameters", "latency_b1_ms")


def headline(rows: Sequence[Row], primary: Score | None) -> Headline:
    """The best student row against the baseline row, and against the teacher."""
    by = {
        standing: _with(rows, standing, primary) for standing in ("baseline", "teacher", "student")
    }
    if primary is None or not any(by.values()):
        return Headline(sentence="Nothing has been evaluated yet.", detail=())
    if not by["student"] or not by["baseline"]:
        return Headline(sentence=_alone(by, primary), detail=())
    best = _best(by["student"], primary)
    baseline = by["baseline"][0]
    detail = [_evidence(best, len(by["student"]), primary)]
    if by["teacher"]:
        detail += _teacher(best, baseline, _best(by["teacher"], primary), primary)
    return Headline(sentence=_sentence(best, baseline, primary), detail=tuple(detail))


def _with(rows: Sequence[Row], standing: str, primary: Score | None) -> list[Row]:
    return [r for r in rows if r.standing == standing and primary and primary.name in r.scores]


def _best(rows: Sequence[Row], primary: Score) -> Row:
    sign = -1 if primary.lower_is_better else 1
    return max(rows, key=lambda row: sign * row.scores[primary.name].mean)


def _alone(by: Mapping[str, Sequence[Row]], primary: Score) -> str:
    row = next(rows[0] for rows in by.values() if rows)
    mean = quantity(row.scores[primary.name].mean, primary.name)
    what = f"{mean} {inside(primary.label)}"
    return f"{_capital(row.name)} reaches {what}; there is no pair to compare yet."


def _sentence(best: Row, baseline: Row, primary: Score) -> str:
    gap = best.differences[primary.name]
    amount = _amount(gap, primary)
    if gap.how == "paired" and gap.low is not None and not gap.beyond_noise():
        return f"No difference beyond noise between {best.name} and {baseline.name}."
    gain = (gap.mean < 0) == primary.lower_is_better and gap.mean != 0
    if gap.low is None:
        if gap.mean == 0:
            return f"{_capital(best.name)} and {baseline.name} score the same on {seeds(gap.n)}."
        word = "ahead of" if gain else "behind"
        return f"{_capital(best.name)} is {amount} {word} {baseline.name}, on {seeds(gap.n)}."
    verb = "gains" if gain else "loses"
    return f"{_capital(best.name)} {verb} {amount} over {baseline.name}."


def _amount(gap: Difference, primary: Score) -> str:
    size, points = number(abs(gap.mean), primary.name), unit(primary.name).points
    if points == "points":
        return f"{size} points of {inside(primary.label)}"
    return (
        f"{size} {points} of {inside(primary.label)}"
        if points
        else f"{size} {inside(primary.label)}"
    )


def _evidence(best: Row, students: int, primary: Score) -> str:
    gap = best.differences[primary.name]
    chosen = f" It is the best of {students} rows by mean." if students > 1 else ""
    if gap.how == "means":
        return f"A difference of means: the rows do not share their seeds.{chosen}"
    if gap.low is None or gap.high is None:
        return f"With {seeds(gap.n)} there is no interval: chance is not ruled out.{chosen}"
    mean = difference(gap.mean, primary.name)
    span = interval(gap.low, gap.high, primary.name, sign=True)
    return f"Paired over {seeds(gap.n)}: {mean}, 95 % interval {span}.{chosen}"


def _teacher(best: Row, baseline: Row, teacher: Row, primary: Score) -> list[str]:
    ours, theirs = best.scores[primary.name].mean, teacher.scores[primary.name].mean
    before, sign = baseline.scores[primary.name].mean, -1 if primary.lower_is_better else 1
    lines = [f"The teacher reaches {quantity(theirs, primary.name)}"]
    if sign * (theirs - before) > 0 and sign * (ours - before) > 0:
        share = (ours - before) / (theirs - before)
        lines[0] += f"; {100 * share:.0f} % of its lead over {baseline.name} is closed"
    lines[0] += "."
    for name in COMPUTE:
        if name in best.scores and name in teacher.scores and teacher.scores[name].mean > 0:
            part = 100 * best.scores[name].mean / teacher.scores[name].mean
            label = inside(unit(name).label)
            lines.append(f"The student needs {significant(part, 2)} % of the teacher's {label}.")
            break
    return lines


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
