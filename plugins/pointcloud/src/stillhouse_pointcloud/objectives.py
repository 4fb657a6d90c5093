"""PointDistiller's loss: the teacher's local graphs, at the items that matter most.

Zhang et al. 2023, CVPR (arXiv 2205.11098). n: items (voxels, pillars, cells, points) of a cloud,
the same and in the same order for teacher and student. Ct, Cs: channels of teacher and student. N:
items chosen. K: items of a graph, its centre among them. D: channels of the encoders' output.

What the authors' released code computes differs from the paper; see `LocalGraphDistillation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import positive
from stillhouse_pointcloud.encoders import EdgeEncoder, bounded, graph_features
from stillhouse_pointcloud.graphs import (
    Features,
    Graphs,
    as_clouds,
    as_scores,
    build_graphs,
    chunks,
)

POOLS = ("none", "max")
EDGES = ("concat", "subtract")
IMPORTANCES = ("count", "max", "given")
BATCHES = ("per_sample", "concat")
COMPATS = ("paper", "official")
OFFICIAL_TAU = 0.01  # hard-coded in the released code, whatever its settings say
OFFICIAL_PLAIN = 5e-4  # the released code's weight where it does not reweight


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The items of a cloud that the loss looked at, most important first, and what each weighed."""

    items: Integer[Tensor, " N"]  # rows of the cloud; of all clouds end to end with "concat"
    weights: Float[Tensor, " N"]  # N times phi: mean 1


@dataclass(frozen=True, kw_only=True)
class Clouds:
    """How many clouds a call was given, and whether as maps [B, C, H, W]."""

    count: int
    maps: bool


@dataclass(frozen=True, kw_only=True)
class _Halves:
    """Both encoders' a and b, an edge being relu(a_j + b_i)."""

    teacher: tuple[Tensor, Tensor]
    student: tuple[Tensor, Tensor]


class LocalGraphDistillation(nn.Module):
    """L_KD of arXiv 2205.11098, section 3, with its two encoders; a role, trained with the student.

    I: the N = min(num, n) items of the largest importance s, ties by lower index. s is `importance`
    as given ("count": the points in a voxel; "given": any score) or max_c of the teacher's features
    ("max"). Graph of i in I: the K = min(k, n) items nearest to it in the teacher's features, i
    included, for teacher and student alike. Edge: [z_j; z_i], or [z_i - z_j; z_i] ("subtract"). G =
    gamma(edges), one `EdgeEncoder` a side, and the maximum over K with pool="max".

    compat="paper", mean over clouds:
        reweight      sum_i phi_i |G_i^T - G_i^S|^2, phi = softmax over I of s_i / tau (eq. 2);
                      with importance="max", of max G_i^T / tau over its D (and K) numbers
        no reweight   1/N sum_i |G_i^T - G_i^S|^2 (eq. 1)
    |.|^2 is a sum over D and K, so the value grows with D * K. Reconstruction: the form of eq. 1
    (its image could not be read), the mean over clouds, and that phi is detached.

    compat="official", means over all i, D and K of the batch, where d = G^T - G^S:
        count, given  factor * mean(N softmax(s / tau) d^2); factor 2
        max, maps     factor * B * mean(d^2), B clouds (factor 2; 1 in the nuScenes code)
        max, points   factor * mean(d^2)
        no reweight   5e-4 * |d| over the whole batch, not squared
    Maps are [B, C, H, W], points any other form, whether pooled or not. Its reweighting is thus a
    no-op for every importance="max". To follow it further: tau =
    `OFFICIAL_TAU`, since the released pillar code ignores the tau of its settings (on counts, all
    weight then falls on the fullest pillars), and batch="concat", since it mixes the pillars of a
    batch's clouds in top-N and neighbours. Not followed: its teacher runs in training mode, its
    random choice takes the wrong part, it fails when num > n, and its encoders stay in the student.

    local=False has no graphs: edges are z_i alone, so encoders are D x C and K = 1 (reconstruction
    of the ablation's "reweighting only"). normalise=True divides counts by the cloud's largest.
    batch="concat" treats the clouds as one. BatchNorm is over all edges of the call either way.

    Memory is bounded by `chunk` graphs at a time (chunk * n distances, chunk * K * D numbers an
    encoder), also in the backward pass, which computes them anew; the value does not depend on it.
    The teacher is detached: gradients reach the student and both encoders. frozen=True leaves the
    teacher's encoder as it was drawn, so that the targets are no moving ones (ours: the paper and
    the released code train both, which lets the encoders lower the loss without the student). A
    cloud of no items adds 0. `chosen` and `teacher_variance` (of |G_i^T| over all i: 0 when the
    encoders have collapsed) are of the last call. Raises BadSetting and BadData.
    """

    def __init__(
        self,
        teacher_dim: int,
        student_dim: int,
        out_dim: int,
        k: int,
        num: int,
        tau: float,
        pool: str = "none",
        edge: str = "concat",
        importance: str = "count",
        batch: str = "per_sample",
        compat: str = "paper",
        *,
        local: bool = True,
        reweight: bool = True,
        normalise: bool = False,
        frozen: bool = False,
        factor: float = 2.0,
        chunk: int = 256,
    ) -> None:
        super().__init__()
        whole = {"teacher_dim": teacher_dim, "student_dim": student_dim, "out_dim": out_dim}
        for name, value in {**whole, "k": k, "num": num, "tau": tau, "chunk": chunk}.items():
            positive(name, value)
        positive("factor", factor)
        _one_of("pool", pool, POOLS)
        _one_of("edge", edge, EDGES)
        _one_of("importance", importance, IMPORTANCES)
        _one_of("batch", batch, BATCHES)
        _one_of("compat", compat, COMPATS)
        if normalise and importance != "count":
            raise BadSetting(f"normalise is for importance='count' (got '{importance}')")
        self.teacher_dim, self.student_dim, self.out_dim = teacher_dim, student_dim, out_dim
        self.k, self.num, self.tau, self.factor, self.chunk = k, num, tau, factor, chunk
        self.pooled, self.importance, self.compat = pool == "max", importance, compat
        self.concat, self.local, self.reweight = batch == "concat", local, reweight
        self.normalise = normalise
        subtract = edge == "subtract"
        self.teacher = EdgeEncoder(teacher_dim, out_dim, subtract=subtract, local=local)
        self.student = EdgeEncoder(student_dim, out_dim, subtract=subtract, local=local)
        if frozen:
            self.teacher.requires_grad_(False)
        self.chosen: tuple[Chosen, ...] = ()
        self.teacher_variance = torch.zeros(())

    def forward(
        self, teacher: Features, student: Features, importance: Features | None = None
    ) -> Float[Tensor, ""]:
        """The loss of [n, C], a sequence of such (ragged), [B, C, N] or [B, C, H, W].

        `importance`: a number an item, [n], [B, N], [B, H, W] or a sequence; not read with "max".
        """
        targets = [x.detach() for x in as_clouds(teacher, self.teacher_dim, "teacher")]
        learned = as_clouds(student, self.student_dim, "student")
        _check_pairs(targets, learned)
        scores = self._scores(targets, importance)
        count, items = len(targets), torch.cat(learned)
        if self.concat:
            targets, scores = [torch.cat(targets)], [torch.cat(scores)]
        k = self.k if self.local else 1
        graphs = build_graphs(targets, scores, num=self.num, k=k, chunk=self.chunk)
        if not graphs:
            self.chosen, self.teacher_variance = (), items.new_zeros(())
            return torch.stack([x.sum() * 0 for x in (items, *self.parameters())]).sum()
        halves = _Halves(
            teacher=self.teacher(torch.cat(targets), graphs, self.chunk),
            student=self.student(items, graphs, self.chunk),
        )
        weights = self._weights(graphs, torch.cat(scores), halves)
        self.chosen = tuple(
            Chosen(items=one.centres - one.start, weights=weight)
            for one, weight in zip(graphs, weights, strict=True)
        )
        maps = isinstance(teacher, Tensor) and teacher.ndim == 4
        return self._loss(graphs, weights, halves, Clouds(count=count, maps=maps))

    def _scores(self, teacher: Sequence[Tensor], importance: Features | None) -> list[Tensor]:
        if self.importance == "max":
            return [features.amax(dim=1) for features in teacher]
        scores = as_scores(importance, [len(features) for features in teacher])
        if not self.normalise:
            return scores
        return [s / s.amax().clamp_min(1) if len(s) else s for s in scores]

    def _weights(self, graphs: Sequence[Graphs], scores: Tensor, halves: _Halves) -> list[Tensor]:
        """N phi of every graph, a tensor a cloud."""
        if not self.reweight or (self.compat == "official" and self.importance == "max"):
            return [scores.new_ones(len(one)) for one in graphs]
        if self.importance == "max":
            found = self._peaks(graphs, halves).split([len(one) for one in graphs])
        else:
            found = [scores[one.centres] for one in graphs]
        return [len(s) * (s / self.tau).softmax(dim=0) for s in found]

    @torch.no_grad()
    def _peaks(self, graphs: Sequence[Graphs], halves: _Halves) -> Float[Tensor, " M"]:
        a, b = halves.teacher
        parts = [
            graph_features(a, b[where], near, pooled=self.pooled).amax(dim=(1, 2))
            for where, near in chunks(graphs, self.chunk)
        ]
        return torch.cat(parts)

    def _loss(
        self, graphs: Sequence[Graphs], weights: Sequence[Tensor], halves: _Halves, given: Clouds
    ) -> Float[Tensor, ""]:
        (ta, tb), (sa, sb) = halves.teacher, halves.student
        every = torch.cat(self._scaled(graphs, weights, given))
        parts: list[Tensor] = []
        norms: list[Tensor] = []
        for where, near in chunks(graphs, self.chunk):
            sides = ta, tb[where], sa, sb[where]
            found = bounded(_distances, *sides, near, every[where], self.pooled)
            parts.append(found[0])
            norms.append(found[1:].detach())
        self.teacher_variance = torch.cat(norms).var(correction=0)
        total = torch.stack(parts).sum()
        if self.compat == "official" and not self.reweight:
            return OFFICIAL_PLAIN * total.clamp_min(torch.finfo(total.dtype).tiny).sqrt()
        return total

    def _scaled(
        self, graphs: Sequence[Graphs], weights: Sequence[Tensor], given: Clouds
    ) -> list[Tensor]:
        """What |G_i^T - G_i^S|^2 is multiplied by, a tensor a cloud."""
        if self.compat == "paper":
            clouds = 1 if self.concat else given.count
            return [weight / (len(weight) * clouds) for weight in weights]
        if not self.reweight:
            return list(weights)
        numbers = self.out_dim * sum(len(g) if self.pooled else g.edges for g in graphs)
        times = given.count if self.importance == "max" and given.maps else 1
        return [weight * (self.factor * times / numbers) for weight in weights]


def _distances(
    ta: Tensor, tb: Tensor, sa: Tensor, sb: Tensor, near: Tensor, weights: Tensor, pooled: bool
) -> Float[Tensor, " numbers"]:
    """The weighted sum of |G^T - G^S|^2, then every |G^T|, as one tensor."""
    target = graph_features(ta, tb, near, pooled=pooled)
    distances = (target - graph_features(sa, sb, near, pooled=pooled)).square().sum(dim=(1, 2))
    norms = target.detach().square().sum(dim=(1, 2)).sqrt()
    return torch.cat([(weights * distances).sum()[None], norms])


def _check_pairs(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> None:
    found = [[len(x) for x in side] for side in (teacher, student)]
    if found[0] != found[1]:
        raise BadData(
            "graph distillation: teacher and student must have the same items "
            f"(got {found[0]} and {found[1]} a cloud)"
        )


def _one_of(name: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise BadSetting(f"{name} must be one of {', '.join(valid)} (got '{value}')")
