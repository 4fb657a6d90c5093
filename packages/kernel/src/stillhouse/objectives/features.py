"""Distillation from feature maps: hint (FitNets), AT, OFD, MGD, ReviewKD's hierarchical context.

B: samples of the batch. C: channels (Cs student's, Ct teacher's). Hs Ws, Ht Wt: height and width of
the student's and the teacher's map. The teacher is always detached. Where the two maps differ in
size, both are average-pooled to the smaller height and width first. Learned maps in front of these
losses are roles, see projectors.py.
"""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stillhouse.objectives.declared import SampleMean, check_declared
from stillhouse.objectives.inputs import full
from stillhouse.objectives.limits import Range

Maps = Sequence[Float[Tensor, "B _ _ _"]]  # one a stage, each of its own size
Embedded = Sequence[Float[Tensor, "B _ ..."]]  # maps, and embeddings [B, C]


def hint_loss(
    student: Float[Tensor, "B C Hs Ws"], teacher: Float[Tensor, "B C Ht Wt"]
) -> SampleMean:
    """FitNets, Romero et al. 2015 (arXiv 1412.6550), eq. 3: squared distance to the teacher's hint.

    `student` is the regressor's output. Differs: mean over all elements and no 1/2 (the paper
    sums), the form in which the field's weight 100 is used.
    """
    return F.mse_loss(*same_size(student, teacher))


def attention_map(features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B H*W"]:
    """Zagoruyko & Komodakis 2017 (arXiv 1612.03928), F_sum^2: sum over C of squares, 2-norm 1."""
    return F.normalize(full(features).square().sum(dim=1).flatten(1), dim=1)


def at_loss(
    student: Float[Tensor, "B Cs Hs Ws"], teacher: Float[Tensor, "B Ct Ht Wt"]
) -> SampleMean:
    """Attention transfer, arXiv 1612.03928, eq. 2 with p = 2: squared distance of attention maps.

    Mean over B and positions, as in the paper's weight 1000 / (positions * batch). Differs: the
    squared distance without 1/2, as the authors train.
    """
    student, teacher = same_size(student, teacher)
    return F.mse_loss(attention_map(student), attention_map(teacher))


def negative_mean(mean: Float[Tensor, " C"], std: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """E[x | x < 0] for x ~ N(mean, std^2): the margin of OFD's margin ReLU, always < 0.

    mean - std phi(z) / Phi(-z) with z = mean / std, where phi(z) / Phi(-z) = sqrt(2 / pi) /
    erfcx(z / sqrt 2) holds far into the tail. For a BatchNorm before the ReLU, mean is its bias
    and std |weight|.
    """
    m, s = mean.double(), std.double().clamp_min(1e-12)  # double: mean and the rest nearly cancel
    ratio = math.sqrt(2 / math.pi) / torch.special.erfcx(m / s / math.sqrt(2))
    return (m - s * ratio).clamp_max(0).to(mean.dtype)


def ofd_loss(
    student: Float[Tensor, "B C Hs Ws"],
    teacher: Float[Tensor, "B C Ht Wt"],
    margin: Float[Tensor, " C"],
) -> SampleMean:
    """Overhaul of feature distillation, Heo et al. 2019 (arXiv 1904.01866), section 3.

    Partial squared distance d_p to the margin ReLU max(teacher, margin), both before the ReLU:
    0 where student <= target <= 0. Sum over C and positions, mean over B. `student` is the
    connector's output, `margin` the teacher's `negative_mean` per channel.
    """
    student, teacher = same_size(student, teacher)
    target = torch.maximum(teacher, margin.detach()[:, None, None])
    skip = (student <= target) & (target <= 0)
    return torch.where(skip, 0.0, (target - student).square()).sum() / len(student)


def mgd_loss(
    generated: Float[Tensor, "B C Hs Ws"], teacher: Float[Tensor, "B C Ht Wt"]
) -> SampleMean:
    """Masked generative distillation, Yang et al. 2022 (arXiv 2205.01529), feature term.

    Squared distance of the features generated from the masked student's; sum over C and positions,
    mean over B.
    """
    generated, teacher = same_size(generated, teacher)
    return (generated - teacher).square().sum() / len(generated)


def hcl_loss(
    student: Float[Tensor, "B C Hs Ws"],
    teacher: Float[Tensor, "B C Ht Wt"],
    *,
    levels: Annotated[tuple[int, ...], Range(least=1)] = (4, 2, 1),
) -> SampleMean:
    """ReviewKD's hierarchical context loss, Chen et al. 2021 (arXiv 2104.09044).

    Weighted mean of the mean squared distance of the maps (weight 1) and of the maps average-pooled
    to each level x level (weights 1/2, 1/4, ...); levels not below the map's height are left out.
    """
    check_declared(hcl_loss, levels=levels)
    student, teacher = same_size(student, teacher)
    used = [level for level in levels if level < student.shape[2]]
    parts = [F.mse_loss(student, teacher)]
    for level in used:
        pooled = F.adaptive_avg_pool2d(student, level), F.adaptive_avg_pool2d(teacher, level)
        parts.append(F.mse_loss(*pooled))
    weights = [0.5**i for i in range(len(parts))]
    total = torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum()
    return total / sum(weights)


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in full precision, pooled to the smaller height and width; the teacher detached."""
    student, teacher = full(student), full(teacher.detach())
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


def _as_map(x: Tensor) -> Tensor:
    """A pooled embedding [B, C] as the 1 x 1 map it is the values of."""
    return x[:, :, None, None] if x.ndim == 2 else x


def at_stages_loss(students: Maps, teachers: Maps) -> SampleMean:
    """`at_loss`, summed over pairs of maps."""
    pairs = zip(students, teachers, strict=True)
    return torch.stack([at_loss(student, teacher) for student, teacher in pairs]).sum()


def ofd_stages_loss(
    students: Maps, teachers: Maps, margins: Sequence[Float[Tensor, " _"]]
) -> SampleMean:
    """`ofd_loss` over pairs of maps, shallow to deep, each with half the next one's weight.

    The last weighs 1. `students` are the connected maps.
    """
    last = len(margins) - 1
    triples = zip(students, teachers, margins, strict=True)
    losses = [0.5 ** (last - i) * ofd_loss(*each) for i, each in enumerate(triples)]
    return torch.stack(losses).sum()


def reviewkd_loss(students: Embedded, teachers: Embedded) -> SampleMean:
    """`hcl_loss`, summed over pairs of outputs; an embedding [B, C] counts as a 1 x 1 map."""
    pairs = zip(students, teachers, strict=True)
    losses = [hcl_loss(_as_map(student), _as_map(teacher)) for student, teacher in pairs]
    return torch.stack(losses).sum()
