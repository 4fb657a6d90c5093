"""Several roles side by side, for a study's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stillhouse.data.data import Data
from stillhouse.objectives.objective import Models
from stillhouse.stages.evaluate import Metric, uncounted
from stillhouse.work import Work


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The scores of a metric a line as "line/score", which a study shows as a table."""

    lines: Mapping[str, Metric]

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        return {
            f"{line}/{name}": value
            for line, metric in self.lines.items()
            for name, value in metric(models, data, work=work).items()
        }

    def uncounted(self, models: Models, data: Data) -> Mapping[str, Sequence[str]]:
        """What the metrics leave out, by score."""
        return uncounted(self.lines.values(), models, data)
