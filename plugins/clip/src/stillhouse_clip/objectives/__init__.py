"""Losses of image and text embeddings."""

from stillhouse_clip.objectives.contrastive import (
    scaled_contrastive_loss,
    symmetric_contrastive_loss,
)

__all__ = [
    "scaled_contrastive_loss",
    "symmetric_contrastive_loss",
]
