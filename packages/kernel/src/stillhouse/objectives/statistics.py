"""Distillation of what maps are made of, whatever the position: NST, KDSVD.

B: samples of the batch. C: channels (Cs student's, Ct teacher's). Hs Ws, Ht Wt: height and width of
the student's and the teacher's map. The teacher is always detached.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.declared import Count, SampleMean, check_declared
from stillhouse.objectives.features import same_size
from stillhouse.objectives.inputs import full, product

SVD_WIDTH = 8.0  # KDSVD: the width of its radial basis function
EXTRA = 3  # KDSVD: how many more directions the student offers than the teacher has


def nst_loss(
    student: Float[Tensor, "B Cs Hs Ws"], teacher: Float[Tensor, "B Ct Ht Wt"]
) -> SampleMean:
    """Neuron selectivity transfer, Huang & Wang 2017 (arXiv 1707.01219), with k(x, y) = (x . y)^2.

    Squared maximum mean discrepancy between the channels' activation patterns (a map's positions,
    2-norm 1): mean k within the student + mean k within the teacher - 2 mean k between them; mean
    over B. Maps of different size are average-pooled to the smaller first. The teacher's own term
    is a constant; it is there so that equal sets of patterns give 0.
    """
    student, teacher = same_size(student, teacher)
    s, t = F.normalize(student.flatten(2), dim=2), F.normalize(teacher.flatten(2), dim=2)
    within = _kernel(s, s) + _kernel(t, t)
    return within - 2 * _kernel(s, t)


def _kernel(a: Float[Tensor, "B M P"], b: Float[Tensor, "B K P"]) -> Float[Tensor, ""]:
    return product(a, b.mT).square().mean()


def kdsvd_loss(
    students: Sequence[Float[Tensor, "B _ _ _"]],
    teachers: Sequence[Float[Tensor, "B _ _ _"]],
    *,
    rank: Count = 1,
) -> SampleMean:
    """Self-supervised KD by SVD, Lee et al. 2018 (arXiv 1807.06819); our reconstruction.

    Of each map as [positions, C] the `rank` first right singular vectors, times the teacher's
    singular values (2-norm 1 over the `rank`); the student's are, for each of the teacher's, the
    nearest by |cosine| of its first rank + 3, with the sign that makes the cosine positive. Between
    each map and the next, exp(-(a_i - b_j)^2 / 8) over all pairs of channels i, j; squared distance
    of the student's to the teacher's, sum over pairs and maps, mean over B. At least two maps, of
    equal channels. Ours: an SVD leaves the sign of a vector open; here the teacher's has a sum
    >= 0, the natural sign of maps after a ReLU. Where singular values coincide their vectors, and
    so the loss, are not determined.
    """
    if len(students) != len(teachers) or len(students) < 2:
        raise BadSetting(
            "kdsvd needs as many student maps as teacher maps, at least 2 "
            f"(got {len(students)} and {len(teachers)})"
        )
    check_declared(kdsvd_loss, rank=rank)
    pairs = [_aligned(s, t.detach(), rank) for s, t in zip(students, teachers, strict=True)]
    losses: list[Tensor] = []
    for (s_front, t_front), (s_back, t_back) in itertools.pairwise(pairs):
        gap = _between(s_front, s_back) - _between(t_front, t_back)
        losses.append(gap.square().sum(dim=(1, 2, 3)).mean())
    return torch.stack(losses).sum()


def _directions(x: Float[Tensor, "B C H W"], rank: int) -> tuple[Tensor, Tensor]:
    """The first right singular vectors, as columns [B, C, rank], and their values [B, rank]."""
    _, values, vectors = torch.linalg.svd(full(x).flatten(2).mT, full_matrices=False)
    vectors = vectors[:, :rank].mT
    sign = torch.where(vectors.sum(dim=1, keepdim=True) < 0, -1.0, 1.0)
    return vectors * sign, values[:, :rank]


def _aligned(
    student: Float[Tensor, "B Cs Hs Ws"], teacher: Float[Tensor, "B Ct Ht Wt"], rank: int
) -> tuple[Tensor, Tensor]:
    if student.shape[1] != teacher.shape[1]:
        raise BadSetting(
            "kdsvd compares channel by channel: student and teacher need equally many "
            f"(got {student.shape[1]} and {teacher.shape[1]})"
        )
    s, _ = _directions(student, rank + EXTRA)
    t, values = _directions(teacher, rank)
    cosines = product(s.mT, t)  # [B, student's, teacher's]
    nearest = cosines.abs().argmax(dim=1, keepdim=True)
    sign = cosines.gather(1, nearest).sign()
    chosen = s.gather(2, nearest.expand(-1, s.shape[1], -1)) * sign
    weight = F.normalize(values, dim=1)[:, None]
    return chosen * weight, t * weight


def _between(
    front: Float[Tensor, "B C R"], back: Float[Tensor, "B D R"]
) -> Float[Tensor, "B C D R"]:
    return torch.exp(-(front[:, :, None] - back[:, None]).square() / SVD_WIDTH)
