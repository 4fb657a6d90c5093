"""The few figures a reader should leave with."""

from dataclasses import dataclass

from stillhouse.metrics import units
from stillhouse.metrics.known import LISTED
from stillhouse.metrics.scores import Score
from stillhouse.recipe import Kind
from stillhouse.report.document import Document, Row
from stillhouse.report.tables import total_seconds
from stillhouse.report.timings import TIME, latencies


@dataclass(frozen=True, kw_only=True)
class Card:
    """A figure with what it is and what to hold it against."""

    label: str
    value: str
    note: str


def cards(document: Document) -> tuple[Card, ...]:
    """Gain, score, size and speed of the method's row, and what the whole cost."""
    student, teacher = method_row(document), best_row(document, "teacher")
    about = student or best_row(document, "baseline") or teacher
    gain = None if document.headline.withheld else _gain(document, student)
    found = [gain, _reached(document, about, teacher)]
    if about is not None:
        found += [_against(document, about, teacher, score) for score in LISTED]
    return tuple(card for card in [*found, _cost(document)] if card is not None)


def best_row(document: Document, *kinds: Kind) -> Row | None:
    """The row of these kinds with the best mean of the primary score."""
    score = document.score(document.primary or "")
    if score is None:
        return None
    rows = [r for r in document.rows if r.kind in kinds and score.name in r.scores]
    sign = -1 if score.lower_is_better else 1
    return max(rows, key=lambda row: sign * row.scores[score.name].mean, default=None)


def method_row(document: Document) -> Row | None:
    """The method's row where it is scored; where the recipe names none, the best student's."""
    if not document.method:
        return best_row(document, "student", "compressed")
    row = document.row(document.method)
    return row if row is not None and (document.primary or "") in row.scores else None


def _gain(document: Document, student: Row | None) -> Card | None:
    score = document.score(document.primary or "")
    gap = student.differences.get(score.name) if student and score else None
    if score is None or gap is None:
        return None
    label = f"Against {document.baseline}{f', {score.points}' if score.points else ''}"
    note = f"{units.seeds(gap.n)}, no interval"
    if gap.low is not None and gap.high is not None:
        note = f"{units.interval(gap.low, gap.high, score, sign=True)}, {units.seeds(gap.n)}"
    return Card(label=label, value=units.signed(gap.mean, score), note=note)


def _reached(document: Document, row: Row | None, teacher: Row | None) -> Card | None:
    score = document.score(document.primary or "")
    if row is None or score is None:
        return None
    note = "" if teacher in (None, row) else f"teacher {_mean(teacher, score)}"
    return Card(label=f"{score.label}, {row.name}", value=_mean(row, score), note=note)


def _mean(row: Row | None, score: Score) -> str:
    return units.quantity(row.scores[score.name].mean, score) if row else ""


def _against(document: Document, row: Row, teacher: Row | None, score: Score) -> Card | None:
    other = None if teacher is row else teacher
    if score.unit == TIME and other is not None:
        if score.name in row.timed and score.name in other.timed:
            return _card(score, row.timed[score.name], other.timed[score.name], note=", in turns")
        compared = latencies(document, row, other, score) is not None
    else:
        compared = True
    if score.name not in row.scores:
        return None
    theirs = None if other is None else other.scores.get(score.name)
    ours = row.scores[score.name].mean
    return _card(score, ours, theirs.mean if theirs else None, compared=compared)


def _card(
    score: Score, ours: float, theirs: float | None, *, compared: bool = True, note: str = ""
) -> Card:
    """A cost beside the teacher's, with their ratio where they may be `compared`."""
    text = "" if theirs is None else f"teacher {units.quantity(theirs, score)}"
    if theirs is not None and compared and min(ours, theirs) > 0:
        text += f" ({units.ratio(theirs / ours)}{note})"
    return Card(label=score.label, value=units.quantity(ours, score), note=text)


def _cost(document: Document) -> Card | None:
    timed = [stage for stage in document.stages if stage.seconds is not None]
    if not timed:
        return None
    devices = ", ".join(dict.fromkeys(str(stage.device) for stage in timed))
    stages = f"{len(timed)} stage{'' if len(timed) == 1 else 's'}"
    value = units.duration(total_seconds(timed))
    return Card(label="Time for all of it", value=value, note=f"{stages} on {devices}")
