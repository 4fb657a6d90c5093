"""A metric on another of an evaluation's data ports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stillhouse.data.data import Data
from stillhouse.metrics.metric import Metric, Values, check_metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models
from stillhouse.recipe import Resource, resource_of
from stillhouse.work import Work


@dataclass(frozen=True, kw_only=True)
class On(Metric):
    """`metric` of the data at the port `data`; with Lines, a row a data set. Raises BadRecipe for
    what is no metric, and UnknownName where the evaluation has no such data port.
    """

    data: str
    metric: Metric

    def __post_init__(self) -> None:
        check_metric(self.metric, where=f"On: data port '{self.data}'")

    @property
    def resource(self) -> Resource:
        return resource_of((self.metric,))

    def __call__(self, models: Models, data: Data, *, work: Work) -> Values:
        return self.metric(models, self._chosen(work), work=work)

    def scores(self) -> Sequence[Score]:
        return self.metric.scores()

    def rows(self) -> Sequence[str]:
        return self.metric.rows()

    def uncounted(self, models: Models, data: Data, *, work: Work) -> Mapping[str, Sequence[str]]:
        return self.metric.uncounted(models, self._chosen(work), work=work)

    def _chosen(self, work: Work) -> Data:
        return named(work.data, self.data, what="data port", where=f"stage '{work.ctx.stage}'")
