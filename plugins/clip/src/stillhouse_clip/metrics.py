"""Metrics of embeddings: accuracy by classes, few shots by retrieval, and how alike two spaces are.

N: images. C: classes. D: width. M: images of the cache. Embeddings are made unit vectors first. The
metrics of spaces are those of VLM-OOD (Li et al. 2023, arXiv 2307.03135), which published no code
for them: what is inferred is stated.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stillhouse.errors import BadData, BadSetting
from stillhouse_clip.objectives.vlm_ood import unit

ROWS = 1024  # of a table of distances at a time


def class_mean_accuracy(predicted: Int[Tensor, " N"], labels: Int[Tensor, " N"]) -> float:
    """The mean over classes of the fraction of a class's images that are predicted right; classes
    without an image do not count. Raises BadData without any image.
    """
    _check_rows(predicted, labels)
    classes, place = labels.unique(return_inverse=True)
    right = torch.zeros(len(classes)).index_add_(0, place, (predicted == labels).float())
    return float((right / place.bincount(minlength=len(classes))).mean())


def retrieval_few_shot(
    student: Float[Tensor, "N D"],
    text: Float[Tensor, "C D"],
    cache: Float[Tensor, "M D"],
    cache_labels: Int[Tensor, " M"],
    *,
    alpha: float = 1.0,
    beta: float = 5.5,
) -> Float[Tensor, "N C"]:
    """Logits with a cache of few labelled images, after Tip-Adapter (Zhang et al. 2022, arXiv
    2207.09519), as the published code of VLM-OOD has it: cos(s, w_c) + alpha * sum over the images
    m of class c of exp(-beta (1 - cos(s, f_m))). The cosine is not divided by a temperature.
    `cache` are the teacher's embeddings. Nothing is trained. Raises BadData for a label that is no
    class.
    """
    if len(cache_labels) and not 0 <= int(cache_labels.min()) <= int(cache_labels.max()) < len(
        text
    ):
        raise BadData(
            f"few shots: labels {int(cache_labels.min())} to {int(cache_labels.max())}, but "
            f"{len(text)} class texts"
        )
    s = unit(student)
    affinity = torch.exp(-beta * (1 - s @ unit(cache).mT))
    votes = s.new_zeros(len(s), len(text)).index_add_(1, cache_labels, affinity)
    return s @ unit(text).mT + alpha * votes


def relation_match(student: Float[Tensor, "N D"], teacher: Float[Tensor, "N D"]) -> float:
    """M_rel: how often the teacher's embedding nearest to the student's of an image is that of the
    same image; a fraction, chance 1 / N.
    """
    _check_rows(student, teacher)
    own = torch.arange(len(student), device=student.device)
    nearest = [part @ unit(teacher).mT for part in unit(student).split(ROWS)]
    return float((torch.cat([each.argmax(1) for each in nearest]) == own).float().mean())


def neighbour_overlap(
    student: Float[Tensor, "N D"], teacher: Float[Tensor, "N D"], *, k: int
) -> float:
    """M_neigh: the part of an image's k nearest other images that student and teacher share, each
    in its own space, mean over N. That the image itself does not count is read off the paper's
    figure. Raises BadSetting unless 1 <= k < N.
    """
    _check_rows(student, teacher)
    _check_k(k, len(student) - 1, "images")
    ours, theirs = _neighbours(student, k), _neighbours(teacher, k)
    return float((ours[:, :, None] == theirs[:, None]).any(2).float().mean())


def order_inversions(
    student: Float[Tensor, "N D"],
    teacher: Float[Tensor, "N D"],
    text: Float[Tensor, "C D"],
    *,
    k: int,
) -> float:
    """M_vlalign: of the k class texts nearest to the teacher's embedding, nearest first, in how
    many pairs the student is farther from the earlier one; mean over N. Chance is k (k - 1) / 4.
    Raises BadSetting unless 2 <= k <= C.
    """
    _check_rows(student, teacher)
    if k < 2:
        raise BadSetting(f"k must be >= 2 (got {k})")
    _check_k(k, len(text), "class texts")
    order = (unit(teacher) @ unit(text).mT).topk(k, dim=1).indices
    near = (unit(student) @ unit(text).mT).gather(1, order)
    # distance falls as the cosine rises
    wrong = (near[:, :, None] < near[:, None, :]).triu(1)
    return float(wrong.sum((1, 2)).float().mean())


def _neighbours(x: Tensor, k: int) -> Tensor:
    """Places of the k nearest other rows, [N, k]."""
    rows, found = unit(x), list[Tensor]()
    for first in range(0, len(rows), ROWS):
        near = rows[first : first + ROWS] @ rows.mT
        place = torch.arange(len(near), device=x.device)
        near[place, place + first] = -torch.inf
        found.append(near.topk(k, dim=1).indices)
    return torch.cat(found)


def _check_rows(one: Tensor, other: Tensor) -> None:
    if not len(one) or len(one) != len(other):
        raise BadData(f"need as many rows of both, and one at least (got {len(one)}, {len(other)})")


def _check_k(k: int, most: int, what: str) -> None:
    if not 1 <= k <= most:
        raise BadSetting(f"k must be 1 to {most}, for so many {what} (got {k})")
