"""Contrastive distillation: InfoNCE within the batch, and CRD against a memory of all samples.

B: samples of the batch. D: embedding width. K: negatives a sample. The teacher is always detached.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stillhouse.objectives.declared import Positive, check_declared
from stillhouse.objectives.inputs import full, product
from stillhouse.objectives.limits import Range

Samples = Annotated[int, Range(least=2)]


def info_nce_loss(
    student: Float[Tensor, "B D"],
    teacher: Float[Tensor, "B D"],
    *,
    temperature: Positive,
    symmetric: bool = False,
) -> Float[Tensor, ""]:
    """InfoNCE, van den Oord et al. 2018 (arXiv 1807.03748), on cosines / temperature; in nats.

    Each student row must find its own teacher row among the B of the batch; mean over B.
    `symmetric` averages this with the other direction, teacher rows among student rows (as CLIP,
    arXiv 2103.00020). temperature > 0. No factor T^2. At most log B when all rows are equal.
    """
    check_declared(info_nce_loss, temperature=temperature)
    unit = F.normalize(full(student), dim=1, eps=1e-6)
    target = F.normalize(full(teacher.detach()), dim=1, eps=1e-6)
    logits = product(unit, target.mT) / temperature
    own = torch.arange(len(logits), device=logits.device)
    loss = F.cross_entropy(logits, own)
    return (loss + F.cross_entropy(logits.mT, own)) / 2 if symmetric else loss


def crd_loss(
    positives: Float[Tensor, " B"], negatives: Float[Tensor, "B K"], *, samples: Samples
) -> Float[Tensor, ""]:
    """One side of CRD, Tian et al. 2020 (arXiv 1910.10699): noise-contrastive estimation; in nats.

    The scores are similarity / temperature - log Z, of a sample with its own entry of the other
    side's memory and with K others. With h = sigmoid(score - log(K / samples)): minus the mean over
    B of log h(positive) + sum over K of log(1 - h(negative)). `samples` >= 2 is the size of the
    memory. Differs: Z, of Wu et al. 2018 (arXiv 1805.01978); the paper's text leaves it out, its
    authors train with it.
    """
    check_declared(crd_loss, samples=samples)
    shift = math.log(negatives.shape[1] / samples)
    hit = F.logsigmoid(full(positives) - shift)
    miss = F.logsigmoid(shift - full(negatives)).sum(dim=1)
    return -(hit + miss).mean()


def crd_sides_loss(
    positives: Sequence[Float[Tensor, " B"]],
    negatives: Sequence[Float[Tensor, "B K"]],
    *,
    samples: Samples,
) -> Float[Tensor, ""]:
    """`crd_loss` of both sides: the student against the teacher's memory, and the reverse.

    The scores are a `ContrastiveMemory`'s of as many `samples`.
    """
    student, teacher = (
        crd_loss(hit, miss, samples=samples) for hit, miss in zip(positives, negatives, strict=True)
    )
    return student + teacher
