"""KD3's choice of web instances (arXiv 2307.11469): which to train on, from what both networks say.

M: instances of the pool. C: classes. The forms are those of the released code; the paper's own
equations were not at hand.
"""

import math

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import full


def mixing_weight(epoch: int, *, milestones: tuple[float, float]) -> float:
    """The teacher's weight alpha in the combined logits of an epoch, counted from 1.

    1 - exp(-5 ((epoch + 1) / scale - 1)^2) for epoch < off, else 0, with `milestones` = (off,
    scale): (120, 160) of 240 epochs in the released code, in proportion for another length. The
    teacher decides first, the student alone from `off` on. Both > 0.
    """
    off, scale = milestones
    if epoch < 1 or not off > 0 or not scale > 0:
        raise BadSetting(
            f"epoch must be >= 1 and both milestones > 0 (got {epoch} and {milestones})"
        )
    return 1 - math.exp(-5 * ((epoch + 1) / scale - 1) ** 2) if epoch < off else 0.0


def class_thresholds(
    classes: Integer[Tensor, " M"], *, count: int, cutoff: float
) -> Float[Tensor, " C"]:
    """Least confidence a class: cutoff a / (2 - a), with a the predictions of this class over those
    of the most predicted one (FlexMatch's convex map, arXiv 2110.08263). Rare classes need less; a
    class that is never predicted has 0.
    """
    predicted = torch.bincount(classes, minlength=count)
    share = predicted / predicted.max()
    return cutoff * share / (2 - share)


def select_instances(
    teacher_logits: Float[Tensor, "M C"],
    student_logits: Float[Tensor, "M C"],
    *,
    alpha: float,
    cutoff: float = 0.95,
    least: int = 1,
) -> Integer[Tensor, " chosen"]:
    """Rows whose combined confidence exceeds their class's threshold, ascending; no gradient.

    softmax(alpha teacher + (1 - alpha) student); the confidence of a row is its largest probability
    p, its class c the argmax; kept where p > threshold of c (`class_thresholds`, over all M). Where
    fewer than `least` pass, the `least` rows of the largest p - threshold, so that those that pass
    are among them (all M where there are fewer). 0 <= alpha <= 1, 0 < cutoff <= 1, least >= 1.
    """
    _check(alpha, cutoff, least)
    combined = alpha * full(teacher_logits.detach()) + (1 - alpha) * full(student_logits.detach())
    confidence, classes = combined.softmax(dim=1).max(dim=1)
    thresholds = class_thresholds(classes, count=combined.shape[1], cutoff=cutoff)
    margin = confidence - thresholds[classes]
    kept = (margin > 0).nonzero()[:, 0]
    if len(kept) >= least:
        return kept
    return margin.topk(min(least, len(margin))).indices.sort().values


def _check(alpha: float, cutoff: float, least: int) -> None:
    if not 0 <= alpha <= 1:
        raise BadSetting(f"alpha must be >= 0 and <= 1 (got {alpha})")
    if not 0 < cutoff <= 1:
        raise BadSetting(f"cutoff must be > 0 and <= 1 (got {cutoff})")
    if least < 1:
        raise BadSetting(f"least must be >= 1 (got {least})")
