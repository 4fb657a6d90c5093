"""Metrics, by torchmetrics where it has the metric, and what a model costs."""

from stillhouse.metrics.classification import Classification
from stillhouse.profile import Latency, Memory, Profile

__all__ = ["Classification", "Latency", "Memory", "Profile"]
