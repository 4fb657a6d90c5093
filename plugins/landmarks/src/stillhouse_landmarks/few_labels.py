"""Losses of batches in which only some faces have points: the others' are all `UNLABELLED`.

B: faces of the batch. C: coordinates, as in `objectives`. `filler` [B, C] are the points that stand
in for a face without its own: those of a teacher or of a student trained before. That is ours: in
Fard & Mahoor 2022 (arXiv 2111.07047) all faces have points. Where faces have them, these losses are
the paper's.
"""

from jaxtyping import Float
from torch import Tensor

from stillhouse.objectives.declared import NotNegative, NotPositive, SampleMean, Share
from stillhouse_landmarks.objectives import assistive_loss, l1_loss, paper_main_loss

UNLABELLED = -100.0  # crops away from any point


def completed(truth: Float[Tensor, "B C"], filler: Float[Tensor, "B C"]) -> Float[Tensor, "B C"]:
    """The truth where it is known, else the filler; detached."""
    return truth.where(truth != UNLABELLED, filler.to(truth.dtype)).detach()


def completed_l1_loss(
    prediction: Float[Tensor, "B C"], truth: Float[Tensor, "B C"], filler: Float[Tensor, "B C"]
) -> SampleMean:
    """`l1_loss` to the completed truth."""
    return l1_loss(prediction, completed(truth, filler))


def completed_main_loss(
    prediction: Float[Tensor, "B C"], truth: Float[Tensor, "B C"], filler: Float[Tensor, "B C"]
) -> SampleMean:
    """`paper_main_loss` of the completed truth."""
    return paper_main_loss(prediction, completed(truth, filler))


def completed_assistive_loss(
    prediction: Float[Tensor, "B C"],
    truth: Float[Tensor, "B C"],
    teacher: Float[Tensor, "B C"],
    filler: Float[Tensor, "B C"],
    *,
    positive: NotNegative,
    negative: NotPositive,
    beta: Share,
    ramp: bool,
) -> SampleMean:
    """`assistive_loss` of the completed truth: a teacher that is its own filler only draws near."""
    truth = completed(truth, filler)
    return assistive_loss(
        prediction, truth, teacher, positive=positive, negative=negative, beta=beta, ramp=ramp
    )
