"""Who declares which score: the metric, in which row of a table, on which data."""

from collections.abc import Iterator

from stillhouse.metrics.lines import Lines
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.on import On
from stillhouse.metrics.scores import Declaration


def declarations(metric: Metric, *, of: str = "") -> Iterator[Declaration]:
    """Each score of a metric with who declares it: those of a table by the metric of each row."""
    match metric:
        case Lines():
            for line, inner in metric.lines.items():
                yield from declarations(inner, of=f"{of} in row '{line}'")
        case On():
            yield from declarations(metric.metric, of=f"{of} on '{metric.data}'")
        case _:
            yield from ((f"{type(metric).__name__}{of}", score) for score in metric.scores())
