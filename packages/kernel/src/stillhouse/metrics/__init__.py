"""Metrics, by torchmetrics where it has the metric, and what a model costs."""

import importlib
from typing import TYPE_CHECKING, Any

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
_MODULES = {
    "Classification": "metrics.classification",
    "Lines": "metrics.lines",
    "Metric": "metrics.metric",
    "On": "metrics.on",
    **dict.fromkeys(("Latencies", "Latency", "Memory", "Profile"), "profile"),
}


def __getattr__(name: str) -> Any:  # torchmetrics takes seconds; reports need only the names
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"stillhouse.{_MODULES[name]}"), name)
