"""Several roles side by side, for a study's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stillhouse.data.data import Data
from stillhouse.metrics.metric import Metric, uncounted
from stillhouse.metrics.scores import Score
from stillhouse.objectives.objective import Models
from stillhouse.recipe import Resource, resource_of
from stillhouse.work import Work


@dataclass(frozen=True, kw_only=True)
class Lines(Metric):
    """The scores of a metric a row of a study's table."""

    lines: Mapping[str, Metric]

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

    def uncounted(self, models: Models, data: Data) -> Mapping[str, Sequence[str]]:
        return uncounted(self.lines.values(), models, data)
