"""Classifiers by name, and other people's weights for them."""

from stillhouse_vision.models.catalogue import (
    ARCHITECTURES,
    channels,
    full_name,
    model,
    output_shapes,
)
from stillhouse_vision.models.checkpoint import LoadCheckpoint
from stillhouse_vision.models.classifier import ImageSpec
from stillhouse_vision.models.upscaled import named_upscaled

__all__ = [
    "ARCHITECTURES",
    "ImageSpec",
    "LoadCheckpoint",
    "channels",
    "full_name",
    "model",
    "named_upscaled",
    "output_shapes",
]
