"""Losses of VLM-OOD: Li, Fang, Liu, Ling, Tu, Su 2023, Distilling Large Vision-Language Models with
Out-of-Distribution Generalizability (ICCV 2023, arXiv 2307.03135), section 3.

N: images. C: classes that are trained on. D: width of the space. s, t, w: embeddings of student and
teacher and rows of class texts, made unit vectors unless stated otherwise. The teacher is always
detached; text rows are not, so that a prompt may be learned. All are in nats, or without a unit.
Weights are 1 in the paper and its code: the losses are simply added.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from stillhouse.errors import BadData
from stillhouse.objectives.declared import Count, Positive, SampleMean, check_declared
from stillhouse.objectives.inputs import full, product

TEMPERATURE = 0.07  # of the published code, everywhere in training
MASKED = -1e7  # the logit of a pair that is no negative, as in the published code

Mode = Literal["bidirectional", "single"]
Distance = Literal["cos", "sqeuclid"]


def classification_loss(
    student: Float[Tensor, "N D"],
    text: Float[Tensor, "C D"],
    labels: Int[Tensor, " N"],
    *,
    temperature: Positive = TEMPERATURE,
) -> SampleMean:
    """L_cls: cross-entropy of softmax(s w^T / temperature) against the labels; mean over N.

    Raises BadData for a label outside 0 ... C - 1.
    """
    check_declared(classification_loss, temperature=temperature)
    _check_labels(labels, len(text))
    return F.cross_entropy(product(unit(student), unit(text).mT) / temperature, labels)


def imitation_loss(
    student: Float[Tensor, "N D"], teacher: Float[Tensor, "N D"], *, normalized: bool = True
) -> Float[Tensor, ""]:
    """L_mse: the squared distance |s - t|^2, summed over D, mean over N; 2 - 2 cos of the angle.

    Not `normalized`, as the published code's variant: log(1 + mean |s - t|^2 / 10) of the
    embeddings as they are.
    """
    if normalized:
        return (unit(student) - unit(teacher.detach())).square().sum(1).mean()
    return (1 + (full(student) - full(teacher.detach())).square().sum(1).mean() / 10).log()


def contrastive_imitation_loss(
    student: Float[Tensor, "N D"],
    teacher: Float[Tensor, "N D"],
    *,
    temperature: Positive = TEMPERATURE,
    mode: Mode = "bidirectional",
    distance: Distance = "cos",
) -> Float[Tensor, ""]:
    """L_im-cst: InfoNCE within the batch: each s must find its own t among the N, mean over N;
    "bidirectional" averages this with t among the s, "single" does not.

    Logits are cos(s, t) / temperature, as the published code has them; "sqeuclid" are -|s - t|^2 /
    temperature, as the paper's text writes it: the same as "cos" at half the temperature.
    """
    check_declared(
        contrastive_imitation_loss, temperature=temperature, mode=mode, distance=distance
    )
    logits = product(unit(student), unit(teacher.detach()).mT)
    if distance == "sqeuclid":
        logits = 2 * logits - 2
    logits = logits / temperature
    own = torch.arange(len(logits), device=logits.device)
    loss = F.cross_entropy(logits, own)
    return loss if mode == "single" else (loss + F.cross_entropy(logits.mT, own)) / 2


def proximity_loss(
    student: Float[Tensor, "N D"],
    teacher: Float[Tensor, "N D"],
    text: Float[Tensor, "C D"],
    labels: Int[Tensor, " N"],
    *,
    k: Count = 256,
    temperature: Positive = TEMPERATURE,
    filtered: bool = True,
) -> Float[Tensor, ""]:
    """L_vlprox: KL(P_T || P_S) over the teacher's k likeliest classes of each image, where P =
    softmax(x w^T / temperature), made to sum to 1 over those k; all classes where k >= C.

    `filtered`: images that the teacher itself puts into another class than their label count in no
    way. Mean over the images that are left, as in the published code (the paper's formula divides
    by N); 0 where none is, for which the published code gives NaN. Raises BadData for a label
    outside 0 ... C - 1.
    """
    check_declared(proximity_loss, k=k, temperature=temperature)
    _check_labels(labels, len(text))
    taught = product(unit(teacher.detach()), unit(text.detach()).mT) / temperature
    logits = product(unit(student), unit(text).mT) / temperature
    top, classes = taught.topk(min(k, len(text)), dim=1)
    kl = F.kl_div(
        logits.gather(1, classes).log_softmax(1),
        top.log_softmax(1),
        log_target=True,
        reduction="none",
    ).sum(1)
    kept = (taught.argmax(1) == labels) if filtered else torch.ones_like(labels, dtype=torch.bool)
    return torch.where(kept, kl, 0).sum() / kept.sum().clamp_min(1)


def caption_loss(
    student: Float[Tensor, "N D"], captions: Float[Tensor, "N D"], labels: Int[Tensor, " N"]
) -> Float[Tensor, ""]:
    """L_cap: cross-entropy of s c^T, without a temperature, against each image's own caption c;
    captions of other images of its class are masked. Mean over N.

    Optional: the paper finds it worse than enriched class texts.
    """
    logits = product(unit(student), unit(captions.detach()).mT)
    own = torch.arange(len(logits), device=logits.device)
    same = (labels[:, None] == labels) & (own[:, None] != own)
    return F.cross_entropy(logits.masked_fill(same, MASKED), own)


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in at least float32."""
    return F.normalize(full(x), dim=1, eps=1e-6)


def _check_labels(labels: Tensor, classes: int) -> None:
    if labels.device.type == "cpu" and len(labels):
        low, high = (int(v) for v in labels.aminmax())
        if low < 0 or high >= classes:
            raise BadData(
                f"labels {low} to {high}, but the class texts have {classes} rows; give as many "
                "texts as classes"
            )
