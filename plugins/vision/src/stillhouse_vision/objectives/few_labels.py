"""Losses of batches in which only some rows have a label: the others' is `UNLABELLED`.

B: samples of the batch. C: classes.
"""

import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.objectives.declared import NotNegative, Positive
from stillhouse.objectives.inputs import full
from stillhouse.objectives.logits import dkd_loss

UNLABELLED = -100  # torch's own mark of a row that a cross-entropy leaves out


def labelled_cross_entropy_loss(
    logits: Float[Tensor, "B C"], labels: Integer[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Cross-entropy of softmax(logits) with the labels, in nats, mean over the labelled rows; 0
    where there are none.
    """
    known = (labels != UNLABELLED).sum().clamp_min(1)
    total = F.cross_entropy(full(logits), labels.long(), ignore_index=UNLABELLED, reduction="sum")
    return total / known


def pseudo_label_loss(
    logits: Float[Tensor, "B C"],
    labeller: Float[Tensor, "B C"],
    labels: Integer[Tensor, " B"],
) -> Float[Tensor, ""]:
    """Pseudo-label, Lee 2013 (ICML workshop), eq. 15: cross-entropy with the labels where they are
    known, else with the class of the labeller's largest logit; in nats, mean over B.

    Differs: the labeller is a network trained before on the labels alone and stays as it is
    (self-training), and both kinds of row have weight 1.
    """
    return F.cross_entropy(full(logits), _completed(labels, labeller))


def completed_dkd_loss(
    student_logits: Float[Tensor, "B C"],
    teacher_logits: Float[Tensor, "B C"],
    labels: Integer[Tensor, " B"],
    *,
    alpha: NotNegative,
    beta: NotNegative,
    temperature: Positive,
) -> Float[Tensor, ""]:
    """`dkd_loss` whose target class is the teacher's largest logit where there is no label.

    Differs from Zhao et al. 2022 (arXiv 2203.08679), whose target is always the label.
    """
    return dkd_loss(
        student_logits,
        teacher_logits,
        _completed(labels, teacher_logits),
        alpha=alpha,
        beta=beta,
        temperature=temperature,
    )


def _completed(
    labels: Integer[Tensor, " B"], logits: Float[Tensor, "B C"]
) -> Integer[Tensor, " B"]:
    return labels.long().where(labels != UNLABELLED, logits.detach().argmax(1))
