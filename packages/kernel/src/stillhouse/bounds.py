"""Whether a recipe's bounds name scores and rows that its stages can give."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from stillhouse.errors import UnknownName
from stillhouse.metrics.scores import Score

if TYPE_CHECKING:
    from stillhouse.recipe import Bound, Stage


class Scoring(Protocol):
    """What a metric says of its scores before it has run."""

    def scores(self) -> Sequence[Score]: ...
    def rows(self) -> Sequence[str]: ...


@runtime_checkable
class Scored(Protocol):
    """A stage that gives the scores of metrics."""

    @property
    def metrics(self) -> Sequence[Scoring]: ...
    @property
    def measures(self) -> Sequence[Scoring]: ...


def check_bound(bound: "Bound", stages: Iterable["Stage"], *, where: str) -> None:
    """Raises UnknownName where no metric of the `stages` declares the bound's score or a score that
    it counts, or where the metrics of that score know their rows and the bound's is not among
    them.
    """
    found = [
        metric
        for stage in stages
        if isinstance(stage, Scored)
        for metric in (*stage.metrics, *stage.measures)
    ]
    if not found:
        return  # a stage of another kind, which declares nothing beforehand
    known = {score.name for metric in found for score in metric.scores()}
    for name in (bound.score, *bound.counts):
        if name not in known:
            raise UnknownName("score", name, known, where=where)
    giving = [m for m in found if bound.score in {score.name for score in m.scores()}]
    rows = [row for metric in giving for row in metric.rows()]
    if all(metric.rows() for metric in giving) and not _within(bound.row, rows):
        raise UnknownName(f"row of score '{bound.score}'", bound.row, rows, where=where)


def _within(row: str, rows: Iterable[str]) -> bool:
    """Whether it is one of the rows, or one of a table within one of them."""
    return any(row == one or row.startswith(f"{one}/") for one in rows)
