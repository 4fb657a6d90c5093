"""Several roles side by side, for a study's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stillhouse.data.data import Data
from stillhouse.errors import BadRecipe
from stillhouse.metrics.metric import Metric, check_metric, uncounted
from stillhouse.metrics.scores import Score
from stillhouse.objectives.objective import Models
from stillhouse.recipe import Resource, resource_of
from stillhouse.work import Work


@dataclass(frozen=True, kw_only=True)
class Lines(Metric):
    """The scores of a metric a row of a table. Raises BadRecipe for a row that is no metric."""

    lines: Mapping[str, Metric]

    def __post_init__(self) -> None:
        if not self.lines:
            raise BadRecipe("Lines: a table needs at least one row")
        for line, metric in self.lines.items():
            check_metric(metric, where=f"Lines: row '{line}'")

    @property
    def resource(self) -> Resource:
        return resource_of(self.lines.values())

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for line, metric in self.lines.items():
            for key, value in metric(models, data, work=work).items():
                row, name = ("", key) if isinstance(key, str) else key
                found[f"{line}/{row}" if row else line, name] = value
        return found

    def scores(self) -> Sequence[Score]:
        return [score for metric in self.lines.values() for score in metric.scores()]

    def rows(self) -> Sequence[str]:
        """A row with a "/" is one of a table within a line."""
        return [
            f"{line}/{row}" if row else line
            for line, metric in self.lines.items()
            for row in metric.rows() or ("",)
        ]

    def uncounted(self, models: Models, data: Data, *, work: Work) -> Mapping[str, Sequence[str]]:
        return uncounted(self.lines.values(), models, data, work=work)
