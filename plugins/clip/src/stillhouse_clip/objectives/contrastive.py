"""CLIP's loss of pairs, Radford et al. 2021 (arXiv 2103.00020).

N: pairs. D: width. Embeddings are made unit vectors first; logits are factor * cosine.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import full, product


def symmetric_contrastive_loss(
    image: Float[Tensor, "N D"],
    text: Float[Tensor, "N D"],
    *,
    scale: Float[Tensor, ""] | float,
    labels: Int[Tensor, " N"] | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE of pairs, the mean of both directions and over N; in nats, through both sides.

    An image must find its text among the N, and a text its image. Where `labels` are given, all
    pairs of one label are each other's target in equal parts: captions of one class are no
    negatives of it. `scale` is the factor of cosines, a learned tensor or a number > 0 (else
    BadSetting).
    """
    if isinstance(scale, int | float) and not scale > 0:
        raise BadSetting(f"scale must be > 0 (got {scale})")
    unit = F.normalize(full(image), dim=1, eps=1e-6)
    logits = scale * product(unit, F.normalize(full(text), dim=1, eps=1e-6).mT)
    if labels is None:
        labels = torch.arange(len(logits), device=logits.device)
    same = (labels[:, None] == labels).to(logits.dtype)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.mT, target)) / 2


def scaled_contrastive_loss(
    image: Float[Tensor, "N D"],
    text: Float[Tensor, "N D"],
    scale: Float[Tensor, ""],
    labels: Int[Tensor, " N"],
) -> Float[Tensor, ""]:
    """`symmetric_contrastive_loss` of tensors alone, as a term reads them."""
    return symmetric_contrastive_loss(image, text, scale=scale, labels=labels)
