"""The supervised term every student has: cross-entropy with the labels of the batch.

B: samples of the batch. C: classes.
"""

import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.objectives.declared import Fraction, SampleMean, check_declared
from stillhouse.objectives.inputs import full


def cross_entropy_loss(
    logits: Float[Tensor, "B C"], labels: Integer[Tensor, " B"], *, label_smoothing: Fraction = 0.0
) -> SampleMean:
    """Cross-entropy of softmax(logits) with the labels, in nats, mean over B.

    `label_smoothing` s in [0, 1) replaces the one-hot target by (1 - s) one-hot + s / C
    (Szegedy et al. 2016, arXiv 1512.00567, section 7).
    """
    check_declared(cross_entropy_loss, label_smoothing=label_smoothing)
    return F.cross_entropy(full(logits), labels.long(), label_smoothing=label_smoothing)


def role_loss(loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """A loss that a role gives as one of its outputs, as it is."""
    return loss
