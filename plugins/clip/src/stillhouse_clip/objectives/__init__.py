"""Losses of image and text embeddings."""

from stillhouse_clip.objectives.contrastive import (
    scaled_contrastive_loss,
    symmetric_contrastive_loss,
)
from stillhouse_clip.objectives.distillation import (
    anchor_distillation_loss,
    embedding_distillation_loss,
    feature_distillation_loss,
    zero_shot_rows,
)
from stillhouse_clip.objectives.vlm_ood import (
    caption_loss,
    classification_loss,
    contrastive_imitation_loss,
    imitation_loss,
    proximity_loss,
)

__all__ = [
    "anchor_distillation_loss",
    "caption_loss",
    "classification_loss",
    "contrastive_imitation_loss",
    "embedding_distillation_loss",
    "feature_distillation_loss",
    "imitation_loss",
    "proximity_loss",
    "scaled_contrastive_loss",
    "symmetric_contrastive_loss",
    "zero_shot_rows",
]
