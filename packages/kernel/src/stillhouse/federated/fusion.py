"""Effective knowledge fusion: who resembles whom, and what each client is taught.

N: clients. M: samples of the transfer set. C: classes. Divergences are in nats (L1: a fraction).

KnFu (arXiv 2403.11892) has no released code, and only parts of its text were at hand when this was
written. From the paper: a fused teacher a client, weighted by the client's semantic neighbours,
with beta = 10 in its eq. 8. Everything else here is a RECONSTRUCTION: how the label distribution is
estimated, the distance, and that the weights are a softmax of -beta times the distance.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.errors import BadData, UnknownName
from stillhouse.objectives.inputs import fraction, full, not_negative, same_type

Distance = Literal["kl", "js", "l1"]
# keeps the logarithm of a class that a client never predicts finite
SMOOTHING = 1e-8
# how far a row of probabilities may be from 1: half precision on the way is forgiven
ROW_SUM = 1e-2


def estimated_distribution(
    probabilities: Float[Tensor, "M C"], labels: Integer[Tensor, " M"] | None
) -> Float[Tensor, " C"]:
    """A client's label distribution, estimated from its predictions on the transfer set
    (reconstruction of the paper's EPD).

    With labels: q[c] = mean of probabilities[i, c] over the samples i of class c (a model that is
    sure of a class has seen it; 0 for a class that the transfer set lacks), divided by the sum of
    q. Without (None): the mean row. 1e-8 is added to each class and the sum made 1 again.
    `probabilities` are at temperature 1. Raises BadData for no samples, labels outside 0 ... C - 1,
    or rows that are no distributions.
    """
    p = _distributions(probabilities)
    if labels is None:
        return _smoothed(p.mean(dim=0))
    classes = p.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise BadData(
            f"transfer set: labels must be 0 ... {classes - 1} "
            f"(got {int(labels.min())} ... {int(labels.max())})"
        )
    # [M, C]: 1 where the sample has the class
    own = torch.nn.functional.one_hot(labels.long(), classes).to(p.dtype)
    return _smoothed((own * p).sum(dim=0) / own.sum(dim=0).clamp_min(1))


def divergence(p: Float[Tensor, "N C"], kind: Distance = "kl") -> Float[Tensor, "N N"]:
    """Entry [n, m]: how far p[m] is from p[n]; 0 on the diagonal (reconstruction: the paper's
    distance is not known to us, "kl" is our default).

    "kl": KL(p[n] || p[m]) in nats, not symmetric, infinite where p[m] lacks a class of p[n].
    "js": Jensen-Shannon in nats, at most ln 2. "l1": half the sum of |p[n] - p[m]|, at most 1.
    Raises UnknownName for another kind, BadData for rows that are no distributions.
    """
    check_distance(kind)
    p = _distributions(p)
    a, b = p[:, None], p[None, :]
    if kind == "l1":
        return 0.5 * (a - b).abs().sum(dim=2)
    if kind == "kl":
        return _kl(a, b)
    middle = 0.5 * (a + b)
    return 0.5 * _kl(a, middle) + 0.5 * _kl(b, middle)


def fusion_weights(
    divergence: Float[Tensor, "N N"], *, beta: float, min_weight: float = 0.0
) -> Float[Tensor, "N N"]:
    """a[n, m] = exp(-beta d[n, m]) / sum over j of exp(-beta d[n, j]) (the paper's eq. 8 with
    beta = 10; this form of it is a reconstruction). Rows sum to 1.

    beta = 0: every client the same, FedMD's mean. A large beta: each client only itself. `beta`
    belongs to the distance's scale: 10 suits "kl", "js" (at most 0.69) needs about 30.
    `min_weight` (ours, off at 0) drops smaller weights, never a client's own, and makes the sum 1
    again. Raises BadSetting unless beta >= 0 and 0 <= min_weight < 1.
    """
    not_negative("beta", beta)
    fraction("min_weight", min_weight)
    d = full(divergence)
    # an infinite distance times 0 would be no number
    weights = torch.softmax(-beta * d if beta > 0 else torch.zeros_like(d), dim=1)
    own = torch.eye(len(d), dtype=torch.bool, device=d.device)
    kept = torch.where(own | (weights >= min_weight), weights, 0.0)
    return kept / kept.sum(dim=1, keepdim=True)


def fuse(
    knowledge: Float[Tensor, "N M C"], weights: Float[Tensor, "N N"]
) -> Float[Tensor, "N M C"]:
    """Each client's teacher: fused[n] = sum over m of weights[n, m] knowledge[m] (reconstruction).

    A convex combination: rows of probabilities stay rows of probabilities. Raises BadData where the
    two are of different types.
    """
    knowledge, weights = full(knowledge), full(weights)
    same_type("fusion", knowledge=knowledge, weights=weights)
    return torch.einsum("nm,mic->nic", weights, knowledge)


def check_distance(kind: str) -> None:
    """Raises UnknownName unless `divergence` knows the distance."""
    if kind not in get_args(Distance):
        raise UnknownName("distance", kind, get_args(Distance))


def effective_neighbours(weights: Float[Tensor, "K N"]) -> Float[Tensor, " K"]:
    """1 / (sum over m of weights[k, m]^2) of each row: 1 for a client that listens to itself, N for
    a mean.
    """
    return 1 / full(weights).square().sum(dim=1)


def _kl(p: Float[Tensor, "#N #K C"], q: Float[Tensor, "#N #K C"]) -> Float[Tensor, "N K"]:
    """KL(p || q) over the last dimension; 0 log 0 = 0. Rounding may not make it negative."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(dim=-1).clamp_min(0)


def _smoothed(q: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    p = q / q.sum().clamp_min(torch.finfo(q.dtype).tiny) + SMOOTHING
    return p / p.sum()


def _distributions(p: Float[Tensor, "K C"]) -> Float[Tensor, "K C"]:
    p = full(p)
    if len(p) == 0:
        raise BadData("probabilities: no rows; the transfer set needs at least one sample")
    if not bool((p >= 0).all()) or not bool(((p.sum(dim=1) - 1).abs() <= ROW_SUM).all()):
        raise BadData("probabilities: rows must be >= 0 and sum to 1 (logits need a softmax)")
    return p
