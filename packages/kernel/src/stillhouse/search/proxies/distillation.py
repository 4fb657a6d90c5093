"""Losses of distillation at initialisation as scores: minus the loss of a student that has not been
trained, on one batch (the "KD-based zero proxies" of DisWOT, arXiv 2303.15678).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import starmap

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillhouse.errors import BadSetting
from stillhouse.objectives.features import at_loss, hint_loss
from stillhouse.objectives.inputs import named
from stillhouse.objectives.logits import kd_loss
from stillhouse.objectives.relations import (
    cc_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    sp_loss,
)
from stillhouse.objectives.statistics import kdsvd_loss, nst_loss
from stillhouse.search.proxies.diswot import semantic_distance
from stillhouse.search.proxies.network import (
    check_batch,
    check_labels,
    finite,
    head_gradient,
    maps_of,
    output,
    working_copy,
)

TEMPERATURE = 4.0  # the CRD benchmark's (arXiv 1910.10699), as are RKD's weights
RKD_DISTANCE, RKD_ANGLE = 25.0, 50.0


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a network gives for the batch; `seen` makes it."""

    logits: Tensor
    embedding: Tensor
    maps: tuple[Tensor, ...]
    fc_grad: Tensor


Method = Callable[[Seen, Seen], Tensor]  # student, teacher -> loss


def _kd(s: Seen, t: Seen) -> Tensor:
    return kd_loss(s.logits, t.logits, temperature=TEMPERATURE)


def _fitnet(s: Seen, t: Seen) -> Tensor:
    if s.embedding.shape[1] != t.embedding.shape[1]:
        raise BadSetting(
            "fitnet without a projector needs embeddings of one width "
            f"(got {s.embedding.shape[1]} and {t.embedding.shape[1]})"
        )
    return hint_loss(s.embedding[:, :, None, None], t.embedding[:, :, None, None])


def _rkd(s: Seen, t: Seen) -> Tensor:
    distance = rkd_distance_loss(s.embedding, t.embedding)
    return RKD_DISTANCE * distance + RKD_ANGLE * rkd_angle_loss(s.embedding, t.embedding)


def _pkt(s: Seen, t: Seen) -> Tensor:
    return pkt_loss(s.embedding, t.embedding)


def _cc(s: Seen, t: Seen) -> Tensor:
    return cc_loss(s.embedding, t.embedding, kernel="gaussian")


def _at(s: Seen, t: Seen) -> Tensor:
    return torch.stack(list(starmap(at_loss, _pairs(s, t)))).sum()


def _nst(s: Seen, t: Seen) -> Tensor:
    return torch.stack(list(starmap(nst_loss, _pairs(s, t)))).sum()


def _kdsvd(s: Seen, t: Seen) -> Tensor:
    return kdsvd_loss(s.maps, t.maps)


def _sp(s: Seen, t: Seen) -> Tensor:
    return sp_loss(s.maps[-1], t.maps[-1])


def _ickd(s: Seen, t: Seen) -> Tensor:
    return semantic_distance(t.fc_grad, s.fc_grad)


METHODS: Mapping[str, Method] = {
    "kd": _kd,
    "fitnet": _fitnet,
    "rkd": _rkd,
    "pkt": _pkt,
    "cc": _cc,
    "at": _at,
    "nst": _nst,
    "kdsvd": _kdsvd,
    "sp": _sp,
    "ickd": _ickd,
}


def distillation_score(
    teacher: nn.Module | Seen,
    student: nn.Module | Seen,
    images: Float[Tensor, "B C H W"],
    labels: Tensor,
    *,
    method: str,
) -> float:
    """Minus the loss `method` of the student as it is, not trained, against the teacher as it is.

    kd: of the logits, temperature 4. fitnet, rkd, pkt, cc: of the embeddings. at, nst, kdsvd: of
    all maps. sp: of the last map. ickd: of the head's gradients (`semantic_distance`). Both run in
    train mode, on copies. The weights are the caller's: fresh ones of the default initialisation,
    as the paper scores, or a trained teacher's. Either may be what was `seen` of it on this batch,
    which serves every method and, of the teacher, every student. B >= 2.
    """
    loss = named(METHODS, method, what="method", where="distillation score")
    s, t = (
        one if isinstance(one, Seen) else seen(one, images, labels) for one in (student, teacher)
    )
    with torch.no_grad():
        value = loss(s, t).item()
    return -finite(f"the {method} loss", value)


def seen(module: nn.Module, images: Float[Tensor, "B C H W"], labels: Tensor) -> Seen:
    """What `distillation_score` reads of a network: one forward in train mode, on a copy."""
    check_batch(images, labels)
    with torch.no_grad():
        outputs = working_copy(module, training=True)({"images": images})
    logits, embedding = output(outputs, "logits"), output(outputs, "embedding")
    check_labels(logits, labels)
    gradient = head_gradient(logits, embedding, labels)
    return Seen(logits=logits, embedding=embedding, maps=maps_of(outputs), fc_grad=gradient)


def _pairs(s: Seen, t: Seen) -> list[tuple[Tensor, Tensor]]:
    if len(s.maps) != len(t.maps):
        raise BadSetting(
            "student and teacher need equally many stages to be compared map by map "
            f"(got {len(s.maps)} and {len(t.maps)})"
        )
    return list(zip(s.maps, t.maps, strict=True))
