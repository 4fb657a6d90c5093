"""What a metric is: scores of roles on data, and what these scores are."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from stillhouse.data.data import Data
from stillhouse.metrics.scores import Score
from stillhouse.objectives.objective import Models
from stillhouse.work import Work

# by name, or by row and name
Values = (
    Mapping[str, float] | Mapping[tuple[str, str], float] | Mapping[str | tuple[str, str], float]
)


class Metric(ABC):
    """Scores of roles on data; a frozen dataclass. Roles come in eval mode, on `work.device`,
    without gradient. Every metric and figure of a stage has a generator that begins at its seed.
    """

    @abstractmethod
    def __call__(self, models: Models, data: Data, *, work: Work) -> Values:
        """The scores by name; those of a study's table by (row, name)."""

    def scores(self) -> Sequence[Score]:
        """What each name stands for. A name may be missing among what is given, never here."""
        return ()

    def uncounted(self, models: Models, data: Data) -> Mapping[str, Sequence[str]]:
        """What is left out of a score, by score, as names; nothing as a rule."""
        return {}


def uncounted(metrics: Iterable[Metric], models: Models, data: Data) -> dict[str, list[str]]:
    """What the metrics leave out, by score."""
    found = [metric.uncounted(models, data) for metric in metrics]
    return {score: list(names) for one in found for score, names in one.items()}
