"""Relations of the self-attention of two encoders, and how far they are apart.

B: samples, S: tokens, D: channels of queries, keys or values, H: relation heads.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives import SampleMean

Kind = Literal["mse_softmax", "mse_scores", "kl"]
Mask = Bool[Tensor, "B S"] | Int[Tensor, "B S"]


def relation_scores(projection: Float[Tensor, "B S D"], *, heads: int) -> Float[Tensor, "B H S S"]:
    """A A^T / sqrt(d_k) of each relation head, d_k = floor(D / heads); channels behind heads * d_k
    are not used. Raises BadSetting where a head would have no channel.
    """
    batch, tokens, channels = projection.shape
    size = channels // heads if heads > 0 else 0
    if size < 1:
        raise BadSetting(
            f"relations: {channels} channels cannot be split over {heads} heads; use 1 to "
            f"{channels} heads"
        )
    split = projection[..., : heads * size].reshape(batch, tokens, heads, size).transpose(1, 2)
    return (split @ split.transpose(2, 3)) * size**-0.5


def relations(
    projection: Float[Tensor, "B S D"], mask: Mask, *, heads: int, kind: Kind = "mse_softmax"
) -> Float[Tensor, "B H S S"]:
    """What `relation_loss` holds against each other: by kind probabilities over the keys, scores,
    or log-probabilities. Masked keys have probability 0, score 0, and the lowest log-probability.
    """
    scores = relation_scores(projection, heads=heads)
    keys = mask.bool()[:, None, None, :]
    match kind:
        case "mse_scores":
            return scores.masked_fill(~keys, 0.0)
        case "mse_softmax":
            return scores.masked_fill(~keys, torch.finfo(scores.dtype).min).softmax(-1)
        case "kl":
            # finite: log-probabilities of -inf would make 0 * inf of what counts nothing
            return scores.masked_fill(~keys, torch.finfo(scores.dtype).min / 4).log_softmax(-1)
        case _:
            raise BadSetting(f"relations: kind must be one of {', '.join(get_args(Kind))}")


def relation_distance(
    teacher: Float[Tensor, "B H S S"],
    student: Float[Tensor, "B H S S"],
    mask: Mask,
    *,
    kind: Kind = "mse_softmax",
) -> SampleMean:
    """The distance of two networks' `relations`: a mean over samples; the teacher is detached."""
    teacher = teacher.detach()
    if kind != "kl":
        return F.mse_loss(student, teacher)
    rows = mask.to(student.dtype)
    gaps = (teacher.exp() * (teacher - student)).sum(-1).mean(1)  # [B, S]
    return ((gaps * rows).sum(1) / rows.sum(1).clamp_min(1)).mean()


def relation_loss(
    teacher: Float[Tensor, "B S D_t"],
    student: Float[Tensor, "B S D_s"],
    mask: Mask,
    *,
    heads: int,
    kind: Kind = "mse_softmax",
) -> SampleMean:
    """Self-attention relation loss of AutoDistil (Xu et al. 2022, arXiv 2201.12507, eq. 4) for one
    of queries, keys and values: the unsplit projections of two networks, of any two widths, are
    split anew into `heads` relation heads, and R = softmax(A A^T / sqrt(d_k) + mask) compared.

    "mse_softmax", the paper's: mean of the squared differences over all B, H, S x S entries, padded
    query rows included, as in the released code. "mse_scores", the released code's: the same of the
    scores before the softmax; both networks' masks are equal and cancel, so masked keys count 0.
    "kl", MiniLMv2's (Wang et al. 2021, arXiv 2012.15828, eq. 3): KL(teacher || student) in nats,
    mean over heads and the query rows that are no padding, then over samples.

    `mask` is 1 (True) where there is a token, 0 at padding. The teacher is detached. d_k of each
    network is floor(D / heads); the rest of its channels is not used. Raises BadSetting where a
    head would have no channel, or for another kind.
    """
    return relation_distance(
        relations(teacher.detach(), mask, heads=heads, kind=kind),
        relations(student, mask, heads=heads, kind=kind),
        mask,
        kind=kind,
    )
