"""Stillhouse domain plugin: image classification."""

from stillhouse.domain import Domain
from stillhouse_vision.datasets import DATASETS

domain = Domain(
    name="vision",
    summary="image classification: small convolutional networks from large ones",
    recipes={
        "distill": "stillhouse_vision.recipes.distill:distill",
        "diswot": "stillhouse_vision.recipes.diswot:diswot",
        "kd3": "stillhouse_vision.recipes.kd3:kd3",
        "knfu": "stillhouse_vision.recipes.knfu:knfu",
    },
    predict="stillhouse_vision.predict:predict",
    datasets=DATASETS,
)

__all__ = ["domain"]
