"""What a metric is: scores of roles on data, and what these scores are."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from stillhouse.data.data import Data
from stillhouse.errors import BadRecipe
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

    def uncounted(
        self,
        models: Models,
        data: Data,
        *,
        work: Work,
    ) -> Mapping[str, Sequence[str]]:
        """What is left out of a score, by score, as names; nothing as a rule."""
        return {}

    def rows(self) -> Sequence[str]:
        """The rows of its table that are known before it has run; none as a rule."""
        return ()


def uncounted(
    metrics: Iterable[Metric], models: Models, data: Data, *, work: Work
) -> dict[str, list[str]]:
    """What the metrics leave out, by score, each name once."""
    found: dict[str, list[str]] = {}
    for metric in metrics:
        for score, names in metric.uncounted(models, data, work=work).items():
            found[score] = list(dict.fromkeys([*found.get(score, ()), *names]))
    return found


def check_metric(metric: object, *, where: str) -> None:
    """Raises BadRecipe for what is no metric, or one that declares no score; `where` holds it."""
    if not isinstance(metric, Metric) or not metric.scores():
        raise BadRecipe(
            f"{where}: {type(metric).__name__} declares no score; make it a stillhouse.Metric "
            "with a method scores(), see docs/plugin.md"
        )
