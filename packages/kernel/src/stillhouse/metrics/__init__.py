"""Metrics, by torchmetrics where it has the metric, and what a model costs."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stillhouse.metrics.classification import Classification
    from stillhouse.profile import Latency, Memory, Profile

__all__ = ["Classification", "Latency", "Memory", "Profile"]


def __getattr__(name: str) -> object:  # torchmetrics takes seconds; reports need only the names
    if name == "Classification":
        from stillhouse.metrics.classification import Classification

        return Classification
    if name in __all__:
        from stillhouse import profile

        return getattr(profile, name)
    raise AttributeError(name)
