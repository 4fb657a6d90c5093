"""The two losses of KD3 (arXiv 2307.11469): weighted feature alignment and contrast of views.

B: samples of the batch. K: classes. C H W: channels, height, width of a map. D: embedding width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.features import same_size
from stillhouse.objectives.inputs import full, positive, product
from stillhouse.objectives.logits import standardized

GAP = 1e-6  # added to each difference of logits, as torch's pairwise distance does


def alignment_weights(
    student_logits: Float[Tensor, "B K"],
    teacher_logits: Float[Tensor, "B K"],
    *,
    temperature: float = 1.0,
    standardize: bool = False,
) -> Float[Tensor, " B"]:
    """sigmoid(||student - teacher + 1e-6||_2 / temperature): 1/2 where both agree, towards 1 where
    they differ; detached.

    With logits far apart, as a trained teacher's are, all weights are near 1 at temperature 1, the
    released code's. A higher temperature, or `standardize` (logits of a row to mean 0 and deviation
    1 first), distinguishes the rows; both are ours.
    """
    positive("temperature", temperature)
    student, teacher = full(student_logits.detach()), full(teacher_logits.detach())
    if standardize:
        student, teacher = standardized(student), standardized(teacher)
    distance = torch.linalg.vector_norm(student - teacher + GAP, dim=1)
    return torch.sigmoid(distance / temperature)


def weighted_alignment_loss(
    student_map: Float[Tensor, "B C Hs Ws"],
    teacher_map: Float[Tensor, "B C Ht Wt"],
    student_logits: Float[Tensor, "B K"],
    teacher_logits: Float[Tensor, "B K"],
    *,
    temperature: float = 1.0,
    standardize: bool = False,
) -> Float[Tensor, ""]:
    """KD3's feature term: mean over B, C and positions of w (projected student - teacher)^2.

    w of `alignment_weights`, a weight a sample, in [1/2, 1]. Gradient reaches `student_map` alone;
    the teacher and the weights are detached. Maps of two sizes are average-pooled to the smaller.
    """
    weights = alignment_weights(
        student_logits, teacher_logits, temperature=temperature, standardize=standardize
    )
    student, teacher = same_size(student_map, teacher_map)
    return (weights[:, None, None, None] * (student - teacher).square()).mean()


def nt_xent(
    a: Float[Tensor, "B D"], b: Float[Tensor, "B D"], *, temperature: float
) -> Float[Tensor, ""]:
    """NT-Xent of two views of each sample (SimCLR, arXiv 2002.05709, eq. 1); nats, mean over 2B.

    Each of the 2B rows, scaled to norm 1, must find its sample's other view among the 2B - 1 other
    rows, by cosine / temperature. Gradient reaches both views. temperature > 0; B >= 1, and 0 for
    B = 1.
    """
    positive("temperature", temperature)
    if a.shape != b.shape:
        raise BadSetting(
            f"nt_xent needs two views of one shape (got {list(a.shape)} and {list(b.shape)})"
        )
    rows = F.normalize(full(torch.cat([a, b])), dim=1, eps=1e-6)
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    scores = (product(rows, rows.mT) / temperature).masked_fill(own, float("-inf"))
    other = torch.arange(len(rows), device=rows.device).roll(len(a))
    return F.cross_entropy(scores, other)
