"""The supervised term every student has: cross-entropy with the labels of the batch.

B: samples of the batch. C: classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.objectives.inputs import fraction, full, named, pick
from stillhouse.objectives.objective import Tensors


def cross_entropy_loss(
    logits: Float[Tensor, "B C"], labels: Integer[Tensor, " B"], *, label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy of softmax(logits) with the labels, in nats, mean over B.

    `label_smoothing` s in [0, 1) replaces the one-hot target by (1 - s) one-hot + s / C
    (Szegedy et al. 2016, arXiv 1512.00567, section 7).
    """
    fraction("label_smoothing", label_smoothing)
    return F.cross_entropy(full(logits), labels.long(), label_smoothing=label_smoothing)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """`cross_entropy_loss` of a role's logits with a column of the batch."""

    student: str = "student"
    output: str = "logits"
    labels: str = "labels"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        fraction("label_smoothing", self.label_smoothing)

    def __call__(
        self, outputs: Mapping[str, Tensors], batch: Tensors, *, progress: float
    ) -> Tensor:
        return cross_entropy_loss(
            pick(outputs, self.student, self.output),
            named(batch, self.labels, what="column", where="batch"),
            label_smoothing=self.label_smoothing,
        )
