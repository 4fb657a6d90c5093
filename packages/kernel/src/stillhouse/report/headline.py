"""The sentence at the top: what the method's row bought over the baseline, or why it is withheld.

A loss is stated as plainly as a gain; other rows follow, corrected for their number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stillhouse.metrics.known import COMPUTE, PARAMETERS
from stillhouse.metrics.scores import Score
from stillhouse.metrics.units import (
    capital,
    counted,
    difference,
    inside,
    interval,
    number,
    probability,
    quantity,
    seeds,
    significant,
)
from stillhouse.recipe import Kind
from stillhouse.report.document import Headline, Held, Row
from stillhouse.report.statistics import Difference
from stillhouse.report.timings import TIME


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a headline is made of; `method` names the row it is about, "" where none is named."""

    rows: Sequence[Row]
    primary: Score | None
    method: str = ""
    control: Held | None = None
    ceiling: Held | None = None


def headline(found: Findings) -> Headline:
    """The method's row against the baseline row and the teacher, then the other rows."""
    if found.primary is None or not any(_scored(found, row) for row in found.rows):
        return Headline(sentence="Nothing has been evaluated yet.", detail=())
    if reason := _withheld(found, found.primary):
        return Headline(sentence=reason, detail=(), withheld=True)
    method, baseline = _method(found), _first(found, "baseline")
    others = _others(found, found.primary)
    if found.method and (method is None or baseline is None or method is baseline):
        return Headline(sentence=_alone(found, found.primary), detail=())
    if method is None or baseline is None:
        sentence = others[0] if others else _alone(found, found.primary)
        return Headline(sentence=sentence, detail=())
    if found.primary.name not in method.differences:
        return Headline(sentence=_alone(found, found.primary), detail=())
    detail = [_evidence(method.differences[found.primary.name], found.primary)]
    detail += _teacher(found, method, baseline, found.primary)
    sentence = _sentence(method, baseline, found)
    return Headline(sentence=sentence, detail=(*detail, *others))


def _scored(found: Findings, row: Row) -> bool:
    return found.primary is not None and found.primary.name in row.scores


def _first(found: Findings, *kinds: Kind) -> Row | None:
    rows = (r for r in found.rows if r.kind in kinds and _scored(found, r))
    return next(rows, None)


def _method(found: Findings) -> Row | None:
    rows = (r for r in found.rows if r.name == found.method and _scored(found, r))
    return next(rows, None)


def _withheld(found: Findings, primary: Score) -> str:
    """Why the scores bear no comparison; "" where they do."""
    ceiling, control = found.ceiling, found.control
    label = inside(primary.label)
    if ceiling is not None and _worse(ceiling.value, ceiling.enough, primary):
        top = quantity(ceiling.value, primary)
        return (
            f"No headline: on these test data {ceiling.name} reaches only {top} {label}"
            f"{counted(ceiling.counts)}, so the scores say nothing about the models."
        )
    about = _method(found) or _first(found, "baseline")
    if control is None or about is None:
        return ""
    ours = about.scores[primary.name].mean
    if not _worse(ours, control.value, primary):
        return ""
    return (
        f"No headline: {about.name} reaches {quantity(ours, primary)} {label}, no better than "
        f"the trivial control, {control.name}, with {quantity(control.value, primary)}."
    )


def _worse(value: float, other: float, primary: Score) -> bool:
    """Whether `value` is no better than `other`."""
    return value >= other if primary.lower_is_better else value <= other


def _alone(found: Findings, primary: Score) -> str:
    first = (
        _first(found, "baseline"),
        _first(found, "teacher"),
        _first(found, "student", "compressed"),
    )
    method = _method(found)
    row = method or next(row for row in first if row is not None)
    what = f"{quantity(row.scores[primary.name].mean, primary)} {inside(primary.label)}"
    if found.method and method is None:
        return f"{capital(found.method)} has not been evaluated yet; {row.name} reaches {what}."
    return f"{capital(row.name)} reaches {what}; there is no pair to compare yet."


def _sentence(method: Row, baseline: Row, found: Findings) -> str:
    primary = found.primary
    assert primary is not None
    gap, name = method.differences[primary.name], capital(method.name)
    if found.control and _worse(baseline.scores[primary.name].mean, found.control.value, primary):
        return (
            f"{name} reaches {quantity(method.scores[primary.name].mean, primary)} "
            f"{inside(primary.label)}; {baseline.name} is no better than the trivial control, "
            f"{found.control.name}, so no gain over it is claimed."
        )
    if gap.low is not None and not gap.beyond_noise():
        return f"No difference beyond noise between {method.name} and {baseline.name}."
    amount = f"{_points(gap.mean, primary)} of {inside(primary.label)}"
    if gap.low is None:
        if gap.mean == 0:
            return f"{name} and {baseline.name} score the same on {seeds(gap.n)}."
        word = "ahead of" if _gains(gap, primary) else "behind"
        return f"{name} is {amount} {word} {baseline.name}, on {seeds(gap.n)}."
    verb, against = ("gains", "over") if _gains(gap, primary) else ("loses", "against")
    return f"{name} {verb} {amount} {against} {baseline.name}{_from_to(method, baseline, primary)}."


def _from_to(method: Row, baseline: Row, primary: Score) -> str:
    """The two means behind a difference; "" where it is of other seeds than these."""
    gap = method.differences[primary.name]
    before, ours = (row.scores[primary.name].mean for row in (baseline, method))
    if gap.how != "paired" or gap.apart:
        return ""
    return f" ({number(before, primary)} to {quantity(ours, primary)})"


def _gains(gap: Difference, primary: Score) -> bool:
    return (gap.mean < 0) == primary.lower_is_better


def _points(gap: float, primary: Score) -> str:
    return f"{number(abs(gap), primary)} {primary.points}".rstrip()


def _evidence(gap: Difference, primary: Score) -> str:
    if gap.how == "means":
        return "A difference of means: the rows do not share their seeds."
    count = f"{seeds(gap.n)} that both rows have" if gap.apart else seeds(gap.n)
    if gap.low is None or gap.high is None or gap.p is None:
        return f"With {count} there is no interval: chance is not ruled out."
    mean = difference(gap.mean, primary)
    span = interval(gap.low, gap.high, primary, sign=True)
    how = "Paired over" if gap.how == "paired" else "Not paired, at least"
    return f"{how} {count}: {mean}, 95 % interval {span} (p {probability(gap.p)})."


def _teacher(found: Findings, method: Row, baseline: Row, primary: Score) -> list[str]:
    """The best teacher's score, how far it is from the student's, the share of its lead that is
    closed, and what the student needs of its compute where that is less.
    """
    rows = [row for row in found.rows if row.kind == "teacher" and _scored(found, row)]
    if not rows:
        return []
    sign = -1 if primary.lower_is_better else 1
    teacher = max(rows, key=lambda row: sign * row.scores[primary.name].mean)
    ours, theirs = method.scores[primary.name].mean, teacher.scores[primary.name].mean
    before = baseline.scores[primary.name].mean
    lines = [f"The teacher reaches {quantity(theirs, primary)}"]
    if gap := _apart(theirs - ours, primary):
        lines[0] += f", {gap} the student"
    clear = method.differences[primary.name].beyond_noise()
    if clear and sign * (theirs - before) > 0 and sign * (ours - before) > 0:
        share = (ours - before) / (theirs - before)
        lines[0] += f"; {100 * share:.0f} % of its lead over {baseline.name} is closed"
    lines[0] += "."
    for cost in COMPUTE:
        if _mean(method, cost) > 0 and _mean(teacher, cost) > 0:
            part = 100 * _mean(method, cost) / _mean(teacher, cost)
            if part < 100:
                needs = f"needs {significant(part, 2)} % of the teacher's {inside(cost.label)}"
                lines.append(f"The student {_fewer(method, teacher, cost)}{needs}.")
            break
    return lines


def _apart(gap: float, primary: Score) -> str:
    """How far the teacher's score is from the student's: "4.90 points above", "" where both are
    written alike.
    """
    if number(abs(gap), primary) == number(0.0, primary):
        return ""
    return f"{_points(gap, primary)} {'above' if gap > 0 else 'below'}"


def _fewer(student: Row, teacher: Row, cost: Score) -> str:
    """The student's parameters, where another cost is what the sentence is about."""
    ours, theirs = _mean(student, PARAMETERS), _mean(teacher, PARAMETERS)
    if cost.name == PARAMETERS.name or ours <= 0 or theirs < 2 * ours:
        return ""
    return f"has {significant(theirs / ours, 2)} times fewer parameters and "


def _mean(row: Row, score: Score) -> float:
    """The row's mean, of a latency the one taken in turns; 0 where it has none."""
    if score.unit == TIME:
        return row.timed.get(score.name, 0.0)
    return row.scores[score.name].mean if score.name in row.scores else 0.0


def _others(found: Findings, primary: Score) -> tuple[str, ...]:
    """What the other students' rows gain and lose, in one sentence; none without intervals."""
    rows = [
        (row.name, row.differences[primary.name])
        for row in found.rows
        if row.compared and row.name != found.method
        if primary.name in row.differences and row.differences[primary.name].p is not None
    ]
    if not rows:
        return ()
    clear = [(name, gap) for name, gap in rows if gap.beyond_noise()]
    parts = [
        f"{name} {'gains' if _gains(gap, primary) else 'loses'} {_points(gap.mean, primary)}"
        for name, gap in clear
    ]
    if rest := [name for name, gap in rows if not gap.beyond_noise()]:
        parts.append(f"no difference beyond noise for {', '.join(rest)}")
    head = "The other row" if len(rows) == 1 else "The other rows"
    if not found.method:
        head = f"Against {next(r.name for r in found.rows if r.kind == 'baseline')}"
    number_of = ", corrected for their number (Holm)" if len(rows) > 1 else ""
    return (f"{head}{number_of}: {'; '.join(parts)}.",)
