"""Distillation of relations: between samples (SP, RKD, CC, PKT) and between channels (ICKD-C), and
DisWOT's two (arXiv 2303.15678), which are one of each.

B: samples of the batch. D: embedding width (Ds student's, Dt teacher's; they may differ).
C: channels. Hs Ws, Ht Wt: height and width of the student's and the teacher's map.
The teacher is always detached. Relations are computed in at least float32, also under autocast.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stillhouse.objectives.declared import Count, Positive, SampleMean, check_declared
from stillhouse.objectives.inputs import full, product

Kernel = Literal["gaussian", "bilinear"]
Form = Literal["code", "paper"]
# Below this length a vector has no direction: its unit vector is 0. Guards dead embeddings.
SHORT = 1e-6


def sp_loss(
    student: Float[Tensor, "B *Student"], teacher: Float[Tensor, "B *Teacher"]
) -> Float[Tensor, ""]:
    """Similarity-preserving KD, Tung & Mori 2019 (arXiv 1907.09682).

    Squared distance of the [B, B] similarity matrices, rows of A A^T with 2-norm 1 where A is the
    map flattened to [B, -1]; mean over the B^2 entries.
    """
    return F.mse_loss(_similarity(student.flatten(1)), _similarity(teacher.detach().flatten(1)))


def rkd_distance_loss(
    student: Float[Tensor, "B Ds"], teacher: Float[Tensor, "B Dt"]
) -> Float[Tensor, ""]:
    """Relational KD, Park et al. 2019 (arXiv 1904.05068): distance-wise, Huber with delta 1.

    Euclidean distances divided by their mean over the batch; mean over the B (B - 1) ordered pairs
    of distinct samples (the paper sums). 0 for B < 2.
    """
    if len(student) < 2:
        return student.sum() * 0.0
    distances = _relative_distances(student), _relative_distances(teacher.detach())
    total = F.smooth_l1_loss(*distances, reduction="sum")  # a sample and itself: 0
    return total / (len(student) * (len(student) - 1))


def rkd_angle_loss(
    student: Float[Tensor, "B Ds"], teacher: Float[Tensor, "B Dt"]
) -> Float[Tensor, ""]:
    """Relational KD, Park et al. 2019 (arXiv 1904.05068): angle-wise, Huber with delta 1.

    Cosine of the angle at j between samples i and k; mean over the B (B - 1) (B - 2) ordered
    triples of distinct samples (the paper sums). 0 for B < 3. Memory B^3 + B^2 D.
    """
    count = len(student)
    if count < 3:
        return student.sum() * 0.0
    angles = _angles(student), _angles(teacher.detach())
    total = F.smooth_l1_loss(*angles, reduction="sum")  # i = j and j = k: 0 - 0; i = k: 1 - 1
    return total / (count * (count - 1) * (count - 2))


def cc_loss(
    student: Float[Tensor, "B Ds"],
    teacher: Float[Tensor, "B Dt"],
    *,
    kernel: Kernel = "gaussian",
    gamma: Positive = 0.4,
    order: Count = 2,
) -> Float[Tensor, ""]:
    """Correlation congruence, Peng et al. 2019 (arXiv 1904.01802): distance of kernel matrices.

    Squared, mean over the B^2 pairs of samples. "bilinear" is x . y; "gaussian" is
    exp(-gamma |x - y|^2) of embeddings of 2-norm 1, as its Taylor series in x . y up to `order`
    (the paper's 0.4 and 2).
    gamma > 0, order >= 1.
    """
    check_declared(cc_loss, kernel=kernel, gamma=gamma, order=order)
    student, teacher = full(student), full(teacher.detach())
    if kernel == "bilinear":
        return F.mse_loss(product(student, student.mT), product(teacher, teacher.mT))
    return F.mse_loss(_gaussian(student, gamma, order), _gaussian(teacher, gamma, order))


def pkt_loss(student: Float[Tensor, "B Ds"], teacher: Float[Tensor, "B Dt"]) -> Float[Tensor, ""]:
    """Probabilistic knowledge transfer, Passalis & Tefas 2018 (arXiv 1803.10837).

    KL(teacher || student) of p(j | i) = K(i, j) / sum over j != i of K(i, j), with the cosine
    kernel K = (cos + 1) / 2; in nats. Mean over the B (B - 1) ordered pairs (the paper sums).
    0 for B < 3.
    """
    count = len(student)
    if count < 3:  # one other sample has probability 1 on both sides
        return student.sum() * 0.0
    p, q = _log_neighbours(student), _log_neighbours(teacher.detach())
    return (q.exp() * (q - p)).sum() / (count * (count - 1))


def ickd_loss(
    student: Float[Tensor, "B C Hs Ws"], teacher: Float[Tensor, "B C Ht Wt"]
) -> SampleMean:
    """ICKD-C, Liu et al. 2021 (arXiv 2202.03680): distance of inter-channel correlation matrices.

    The [C, C] matrix of a sample is F F^T with F its map [C, -1], rows then of 2-norm 1; squared
    distance, mean over B, sum over C^2 divided by C. `student` is the projector's output; the two
    maps may differ in size. Differs: unit rows and 1 / C instead of 1 / C^2 of the raw products, as
    the authors train.
    """
    distance = F.mse_loss(_similarity(student.flatten(2)), _similarity(teacher.detach().flatten(2)))
    return student.shape[1] * distance


def diswot_semantic_loss(
    student: Float[Tensor, "B C Hs Ws"],
    teacher: Float[Tensor, "B C Ht Wt"],
    *,
    form: Form = "code",
) -> SampleMean:
    """DisWOT's M_s as a loss (arXiv 2303.15678): distance of the channels' correlations.

    "code": unit rows, squared, over C; it is `ickd_loss`. "paper": F F^T of each sample over its
    2-norm; 2-norm of the difference, over C^2, mean over B. A reconstruction: the maps stand in for
    the class maps that the score reads. `student` is the projector's output where widths differ.
    """
    check_declared(diswot_semantic_loss, form=form)
    if form == "code":
        return ickd_loss(student, teacher)
    gap = _whole(student.flatten(2)) - _whole(teacher.detach().flatten(2))
    return torch.linalg.vector_norm(gap, dim=(1, 2)).mean() / student.shape[1] ** 2


def diswot_relation_loss(
    student: Float[Tensor, "B *Student"],
    teacher: Float[Tensor, "B *Teacher"],
    *,
    form: Form = "code",
) -> Float[Tensor, ""]:
    """DisWOT's M_r as a loss (arXiv 2303.15678): distance of the samples' similarities.

    "code": unit rows, squared, mean over B^2; it is `sp_loss`. "paper": A A^T over its 2-norm;
    2-norm of the difference, over B^2.
    """
    check_declared(diswot_relation_loss, form=form)
    if form == "code":
        return sp_loss(student, teacher)
    gap = _whole(student.flatten(1)) - _whole(teacher.detach().flatten(1))
    return torch.linalg.vector_norm(gap) / len(student) ** 2


def _whole(x: Float[Tensor, "*Batch N M"]) -> Float[Tensor, "*Batch N N"]:
    """x x^T of a matrix or a batch of matrices, each of 2-norm (Frobenius) 1."""
    gram = product(x, x.mT)
    norm = torch.linalg.vector_norm(gram, dim=(-2, -1), keepdim=True)
    return gram / norm.clamp_min(SHORT)


def _similarity(x: Float[Tensor, "*Batch N M"]) -> Float[Tensor, "*Batch N N"]:
    """x x^T of a matrix or a batch of matrices, rows of 2-norm 1."""
    return F.normalize(product(x, x.mT), dim=-1, eps=SHORT)


def _relative_distances(x: Float[Tensor, "B D"]) -> Float[Tensor, "B B"]:
    # the matrix-product form of cdist loses the small distances to rounding
    x = full(x)
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    mean = distances.sum() / (len(x) * (len(x) - 1))
    return distances / mean.clamp_min(SHORT)


def _angles(x: Float[Tensor, "B D"]) -> Float[Tensor, "B B B"]:
    """[j, i, k]: cosine of the angle at j between i and k; 0 where i or k is j."""
    x = full(x)
    edges = x[None, :, :] - x[:, None, :]
    squared = edges.square().sum(dim=2, keepdim=True)
    unit = edges / torch.where(squared > SHORT**2, squared, 1.0).sqrt()
    return product(unit, unit.mT)


def _gaussian(x: Float[Tensor, "B D"], gamma: float, order: int) -> Float[Tensor, "B B"]:
    unit = F.normalize(x, dim=1, eps=SHORT)
    dots = product(unit, unit.mT)
    terms = [(2 * gamma * dots) ** p / math.factorial(p) for p in range(order + 1)]
    return math.exp(-2 * gamma) * torch.stack(terms).sum(dim=0)


def _log_neighbours(x: Float[Tensor, "B D"]) -> Float[Tensor, "B B-1"]:
    """log p(j | i) over j != i, in order of j."""
    unit = F.normalize(full(x), dim=1, eps=SHORT)
    kernel = (product(unit, unit.mT) + 1) / 2
    others = kernel.flatten()[1:].view(len(x) - 1, len(x) + 1)[:, :-1].reshape(len(x), -1)
    return others.clamp_min(SHORT).log() - others.clamp_min(SHORT).sum(1, keepdim=True).log()
