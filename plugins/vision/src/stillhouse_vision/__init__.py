"""Stillhouse domain plugin: image classification."""

from stillhouse.domain import Domain

domain = Domain(
    name="vision",
    summary="image classification: small convolutional networks from large ones",
    recipes={
        "distill": "stillhouse_vision.recipes.distill:distill",
        "knfu": "stillhouse_vision.recipes.knfu:knfu",
    },
    predict="stillhouse_vision.predict:predict",
)

__all__ = ["domain"]
