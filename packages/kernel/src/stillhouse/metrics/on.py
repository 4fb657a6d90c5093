"""A metric on another of an evaluation's data ports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stillhouse.data.data import Data
from stillhouse.metrics.metric import Metric, Values
from stillhouse.metrics.scores import Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models
from stillhouse.recipe import Resource, resource_of
from stillhouse.work import Work


@dataclass(frozen=True, kw_only=True)
class On(Metric):
    """`metric` of the data at the port `data`; with Lines, a row a data set. Raises UnknownName
    where the evaluation has no such data port.
    """

    data: str
    metric: Metric

    @property
    def resource(self) -> Resource:
        return resource_of((self.metric,))

    def __call__(self, models: Models, data: Data, *, work: Work) -> Values:
        chosen = named(work.data, self.data, what="data port", where=f"stage '{work.ctx.stage}'")
        return self.metric(models, chosen, work=work)

    def scores(self) -> Sequence[Score]:
        return self.metric.scores()

    def uncounted(self, models: Models, data: Data) -> Mapping[str, Sequence[str]]:
        return self.metric.uncounted(models, data)
