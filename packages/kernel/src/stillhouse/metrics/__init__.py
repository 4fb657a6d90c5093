"""Metrics, by torchmetrics where it has the metric, and what a model costs."""

from typing import TYPE_CHECKING

from stillhouse.metrics.scores import Score

if TYPE_CHECKING:
    from stillhouse.metrics.classification import Classification
    from stillhouse.metrics.lines import Lines
    from stillhouse.metrics.metric import Metric
    from stillhouse.metrics.on import On
    from stillhouse.profile import Latencies, Latency, Memory, Profile

__all__ = [
    "Classification", "Latencies", "Latency", "Lines", "Memory", "Metric", "On", "Profile", "Score",
]  # fmt: skip


def __getattr__(name: str) -> object:  # torchmetrics takes seconds; reports need only the names
    if name == "Classification":
        from stillhouse.metrics.classification import Classification

        return Classification
    if name == "Lines":
        from stillhouse.metrics.lines import Lines

        return Lines
    if name == "Metric":
        from stillhouse.metrics.metric import Metric

        return Metric
    if name == "On":
        from stillhouse.metrics.on import On

        return On
    if name in __all__:
        from stillhouse import profile

        return getattr(profile, name)
    raise AttributeError(name)
