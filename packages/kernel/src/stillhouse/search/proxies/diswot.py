"""DisWOT, Dong et al. 2023 (arXiv 2303.15678): how alike two untrained networks see a batch.

B: samples. N: classes. Ct, Cs: channels of the teacher's and the student's map before pooling.
Ht Wt, Hs Ws: their height and width.

The distances are those of the authors' released code, with which their numbers were made: gradients
of the head where the paper writes its weights, unit rows where it divides by the norm of the whole
matrix. A reconstruction in so far as that code adds the two distances of one draw of the weights
as they are; the mean over draws and the combinations by rank and z-score are ours: the semantic
distance is 10 to 1000 times the larger one and decides a plain sum alone.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Generator, Tensor, nn

from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import full, product
from stillhouse.search.proxies.network import (
    check_batch,
    check_labels,
    draw_normal,
    finite,
    head_gradient,
    maps_of,
    output,
    working_copy,
)
from stillhouse.training import mix

Combine = Literal["zscore", "rank", "sum"]
# the released code's: a row shorter than this keeps its length below 1
SHORT = 1e-12
# what a seed is for: the teacher's draws and the student's differ also for equal networks
TEACHER, STUDENT = 1, 2


def semantic_distance(
    teacher_fc_grad: Float[Tensor, "N Ct"],
    student_fc_grad: Float[Tensor, "N Cs"],
    *,
    by_class: bool = False,
) -> Float[Tensor, ""]:
    """DisWOT's M_s: distance of the class-wise correlation of channels; lower is more similar.

    Ct = Cs = C: for each class the [C, C] outer product g g^T of its row g with itself, rows then
    of 2-norm 1; squared distance, sum over C^2, divided by C, mean over N. Both gradients are those
    of `head_gradient`. Ours, where Ct and Cs differ: the one [N, N] matrix of the rows' products,
    rows of 2-norm 1; squared distance, mean over N^2. The two forms are not on one scale: where
    students of several widths are compared, `by_class` takes the second for all.
    """
    teacher, student = full(teacher_fc_grad), full(student_fc_grad)
    if by_class or teacher.shape[1] != student.shape[1]:
        return F.mse_loss(_unit_gram(student), _unit_gram(teacher))
    # one class at a time: N C^2 numbers are too many for 1000 classes of 2048 channels
    rows = [
        F.mse_loss(_unit_gram(s[:, None]), _unit_gram(t[:, None]), reduction="sum")
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(rows).mean() / teacher.shape[1]


def relation_distance(
    teacher_map: Float[Tensor, "B Ct Ht Wt"], student_map: Float[Tensor, "B Cs Hs Ws"]
) -> Float[Tensor, ""]:
    """DisWOT's M_r: distance of the samples' similarities; lower is more similar.

    The [B, B] matrix A A^T of the map flattened to [B, -1], rows then of 2-norm 1; squared
    distance, mean over B^2. Channels and sizes may differ.
    """
    return F.mse_loss(_unit_gram(student_map.flatten(1)), _unit_gram(teacher_map.flatten(1)))


def _unit_gram(x: Float[Tensor, "M K"]) -> Float[Tensor, "M M"]:
    return F.normalize(product(x, x.mT), dim=1, eps=SHORT)


@dataclass(frozen=True, kw_only=True)
class View:
    """What DisWOT reads of a network at one draw of its weights."""

    last_map: Float[Tensor, "B C H W"]  # before pooling
    fc_grad: Float[Tensor, "N D"]


@dataclass(frozen=True, kw_only=True)
class Similarities:
    """The two similarities of a student to its teacher (minus the distances), one a draw of the
    weights, and how they are to be combined over the candidates of a search.
    """

    semantics: tuple[float, ...]
    relations: tuple[float, ...]
    combine: Combine

    @property
    def semantic(self) -> float:
        """Mean over the draws."""
        return statistics.fmean(self.semantics)

    @property
    def relation(self) -> float:
        """Mean over the draws."""
        return statistics.fmean(self.relations)

    @property
    def value(self) -> float:
        """semantic + relation, where `combine` is "sum"; the others exist only among candidates."""
        if self.combine != "sum":
            raise BadSetting(
                f"a {self.combine} is one among candidates: give all their scores to combined(), "
                'or use combine="sum"'
            )
        return self.semantic + self.relation


def combined(scores: Sequence[Similarities]) -> tuple[float, ...]:
    """One number a candidate, higher is better: both parts brought to one scale among these
    candidates, then added.

    "zscore": minus the mean, over the standard deviation (of n, not n - 1; a part that is the same
    for all gives 0). "rank": ranks from 1, equal values share their mean rank. "sum": as they are.
    Raises BadSetting where the scores declare different combinations.
    """
    kinds = sorted({score.combine for score in scores})
    if len(kinds) > 1:
        raise BadSetting(f"scores to be combined in one way declare several: {', '.join(kinds)}")
    parts = [s.semantic for s in scores], [s.relation for s in scores]
    if kinds == ["zscore"]:
        parts = _standardized(parts[0]), _standardized(parts[1])
    elif kinds == ["rank"]:
        parts = rankdata(parts[0]).tolist(), rankdata(parts[1]).tolist()
    return tuple(a + b for a, b in zip(*parts, strict=True))


def _standardized(values: Sequence[float]) -> list[float]:
    mean, spread = statistics.fmean(values), statistics.pstdev(values)
    return [(value - mean) / spread if spread > 0 else 0.0 for value in values]


def diswot_score(
    teacher: nn.Module | Sequence[View],
    student: nn.Module,
    images: Float[Tensor, "B C H W"],
    labels: Tensor,
    *,
    inits: int = 4,
    combine: Combine = "zscore",
    by_class: bool = False,
    seed: int = 0,
) -> Similarities:
    """Similarity of an untrained student to an untrained teacher on one labelled batch.

    For each of `inits` draws, both get weights ~ N(0, 1) (biases 0, norms as identity) and run in
    train mode, so that BatchNorm uses the batch. The two modules are not changed; their own weights
    play no part. `teacher` may be its `views`, which are the same for every candidate of one batch,
    seed and number of draws. `by_class` as in `semantic_distance`. Random numbers depend on `seed`
    alone: all candidates meet the same teachers. B >= 2; one device for all.
    """
    if combine not in get_args(Combine):
        known = ", ".join(get_args(Combine))
        raise BadSetting(f"combine must be one of {known} (got {combine!r})")
    if isinstance(teacher, nn.Module):
        teacher = views(teacher, images, labels, inits=inits, seed=seed)
    if len(teacher) != inits:
        raise BadSetting(f"the teacher's views are of {len(teacher)} draws, the score of {inits}")
    seen = _views(student, images, labels, inits, (seed, STUDENT))
    pairs = list(zip(teacher, seen, strict=True))
    semantics = [
        semantic_distance(t.fc_grad, s.fc_grad, by_class=by_class).item() for t, s in pairs
    ]
    relations = [relation_distance(t.last_map, s.last_map).item() for t, s in pairs]
    return Similarities(
        semantics=tuple(-finite("the semantic distance", d) for d in semantics),
        relations=tuple(-finite("the relation distance", d) for d in relations),
        combine=combine,
    )


def views(
    teacher: nn.Module,
    images: Float[Tensor, "B C H W"],
    labels: Tensor,
    *,
    inits: int,
    seed: int = 0,
) -> tuple[View, ...]:
    """What `diswot_score` reads of the teacher, to be computed once for many students."""
    return _views(teacher, images, labels, inits, (seed, TEACHER))


def _views(
    module: nn.Module, images: Tensor, labels: Tensor, inits: int, seeds: tuple[int, int]
) -> tuple[View, ...]:
    check_batch(images, labels)
    if inits < 1:
        raise BadSetting(f"inits must be >= 1 (got {inits})")
    network = working_copy(module, training=True)
    return tuple(
        _view(network, images, labels, Generator().manual_seed(mix(*seeds, number)))
        for number in range(inits)
    )


def _view(network: nn.Module, images: Tensor, labels: Tensor, rng: Generator) -> View:
    draw_normal(network, rng)
    with torch.no_grad():
        outputs = network({"images": images})
    logits, embedding = output(outputs, "logits"), output(outputs, "embedding")
    check_labels(logits, labels)
    return View(last_map=maps_of(outputs)[-1], fc_grad=head_gradient(logits, embedding, labels))
