"""The detection loss, and an objective that trains detectors with it and whatever is added.

B: clouds. A: anchors of a map. Weights and forms of PointPillars (arXiv 1812.05784, sec. 2.3).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Generator, Tensor

from stillhouse.data.data import row_of
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import full, named, not_negative
from stillhouse.objectives.objective import Composed, Models, Phase, Tensors, Weighted
from stillhouse.objectives.term import Term
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.detectors.anchors import (
    BACKGROUND,
    SKIPPED,
    anchors,
    assigned,
    encode,
    half_of,
)
from stillhouse_pointcloud.detectors.found import flat
from stillhouse_pointcloud.detectors.network import PillarDetector
from stillhouse_pointcloud.detectors.pillars import PillarGrid, with_pillars

ALPHA, GAMMA, BETA = 0.25, 2.0, 1 / 9
LABELS, BOXES, HALVES = "target_labels", "target_boxes", "target_halves"
PARTS: Mapping[str, float] = {"cls": 1.0, "box": 2.0, "dir": 0.2}  # the weight of each


def focal_loss(
    logits: Float[Tensor, "B A classes"], labels: Integer[Tensor, "B A"]
) -> Float[Tensor, ""]:
    """Lin et al. 2017 (arXiv 1708.02002), alpha = 0.25, gamma = 2: a sigmoid a class, summed over
    the anchors that are not `SKIPPED`, over the number that has a class (at least 1).
    """
    scores, counted = full(logits), labels != SKIPPED
    truth = F.one_hot(labels.clamp_min(0), len(CLASSES) + 1)[..., : len(CLASSES)].to(scores.dtype)
    p = scores.sigmoid()
    wrong = truth * (1 - p) + (1 - truth) * p
    alpha = truth * ALPHA + (1 - truth) * (1 - ALPHA)
    entropy = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    each = (alpha * wrong.pow(GAMMA) * entropy).sum(2)
    return (each * counted).sum() / _matched(labels)


def box_loss(
    found: Float[Tensor, "B A 7"], target: Float[Tensor, "B A 7"], labels: Integer[Tensor, "B A"]
) -> Float[Tensor, ""]:
    """Smooth L1 (beta 1/9) of the anchors that have a class, over their number, summed over the
    seven differences; of the yaws' the sine, which a half turn leaves as it is.
    """
    has = _has_class(labels)
    predicted, truth = full(found[has]), full(target[has])
    gap = torch.cat(
        [predicted[:, :6] - truth[:, :6], (predicted[:, 6:] - truth[:, 6:]).sin()], dim=1
    )
    total = F.smooth_l1_loss(gap, torch.zeros_like(gap), beta=BETA, reduction="sum")
    return total / _matched(labels)


def direction_loss(
    logits: Float[Tensor, "B A 2"], halves: Integer[Tensor, "B A"], labels: Integer[Tensor, "B A"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the heading's half, summed over the anchors that have a class, over their
    number.
    """
    has = _has_class(labels)
    return F.cross_entropy(full(logits[has]), halves[has], reduction="sum") / _matched(labels)


def _has_class(labels: Tensor) -> Tensor:
    return (labels != SKIPPED) & (labels != BACKGROUND)


def _matched(labels: Tensor) -> Tensor:
    return _has_class(labels).sum().clamp_min(1)


@torch.no_grad()
def with_targets(batch: Tensors, grid: PillarGrid, stride: int) -> Tensors:
    """The batch with the anchors' targets by its boxes: target_labels int64 [B, A],
    target_boxes [B, A, 7] and target_halves int64 [B, A]. Boxes whose middle is outside the grid
    give no target.
    """
    boxes = named(batch, "boxes", what="column", where="detection")
    at = anchors(grid, stride).to(boxes.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for row in range(len(batch["boxes_offsets"]) - 1):
        truth, labels = row_of(batch, "boxes", row), row_of(batch, "labels", row)
        if not bool((truth.isfinite().all(1) & (truth[:, 3:6] > 0).all(1)).all()):
            raise BadData(f"detection: a box of cloud {row} is not finite or has a size <= 0")
        within = _within(truth, grid)
        truth, labels = truth[within], labels[within]
        targets, which = assigned(at, truth, labels, row_of(batch, "ignored", row))
        # an anchor without a box has itself
        aims = truth[which] if len(truth) else at
        aims = torch.where(_has_class(targets)[:, None], aims, at)
        found.append((targets, encode(aims, at), half_of(aims[:, 6])))
    targets, aims, halves = (torch.stack(parts) for parts in zip(*found, strict=True))
    return {**batch, LABELS: targets, BOXES: aims, HALVES: halves}


def _within(boxes: Tensor, grid: PillarGrid) -> Tensor:
    x, y = boxes[:, 0], boxes[:, 1]
    return (x >= grid.x[0]) & (x < grid.x[1]) & (y >= grid.y[0]) & (y < grid.y[1])


def class_map_loss(
    maps: Float[Tensor, "B _ H W"], labels: Integer[Tensor, "B A"]
) -> Float[Tensor, ""]:
    """`focal_loss` of a head's maps of classes."""
    return focal_loss(flat(maps, len(CLASSES)), labels)


def box_map_loss(
    maps: Float[Tensor, "B _ H W"], target: Float[Tensor, "B A 7"], labels: Integer[Tensor, "B A"]
) -> Float[Tensor, ""]:
    """`box_loss` of a head's maps of boxes."""
    return box_loss(flat(maps, 7), target, labels)


def direction_map_loss(
    maps: Float[Tensor, "B _ H W"], halves: Integer[Tensor, "B A"], labels: Integer[Tensor, "B A"]
) -> Float[Tensor, ""]:
    """`direction_loss` of a head's maps of headings."""
    return direction_loss(flat(maps, 2), halves, labels)


@dataclass(frozen=True, kw_only=True)
class Detection:
    """L = L_cls + 2 L_box + 0.2 L_dir of `student` (arXiv 1812.05784, eq. 3), and the terms of
    `losses`; an objective that runs their roles as the kernel's `Composed` does.

    A step makes the batch's pillars and targets once, by `grid` and the head's `stride`, and every
    role reads the same: a teacher must have the grid of its student.
    """

    phases: Mapping[str, Phase]
    grid: PillarGrid
    stride: int = 2
    student: str = "student"
    losses: Mapping[str, Weighted] = field(default_factory=dict[str, Weighted])
    feeds: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    weight: float = 1.0

    def __post_init__(self) -> None:
        not_negative("weight", self.weight)
        if clash := sorted(set(PARTS) & set(self.losses)):
            raise BadSetting(f"detection: a loss is called '{clash[0]}', as one of its own parts")

    @functools.cached_property  # read each step; no field, so no digest sees it
    def composed(self) -> Composed:
        """All terms, of a batch with pillars and targets."""
        labels = f"batch.{LABELS}"
        parts = {
            "cls": Term(class_map_loss, f"{self.student}.cls", labels),
            "box": Term(box_map_loss, f"{self.student}.box", f"batch.{BOXES}", labels),
            "dir": Term(direction_map_loss, f"{self.student}.dir", f"batch.{HALVES}", labels),
        }
        own = {
            part: Weighted(term=parts[part], weight=weight * self.weight)
            for part, weight in PARTS.items()
        }
        return Composed(phases=self.phases, losses={**own, **self.losses}, feeds=self.feeds)

    def terms(
        self, phase: str, models: Models, batch: Tensors, *, step: int, steps: int, rng: Generator
    ) -> Tensors:
        self._check(models)
        seen = with_targets(with_pillars(batch, self.grid), self.grid, self.stride)
        return self.composed.terms(phase, models, seen, step=step, steps=steps, rng=rng)

    def _check(self, models: Models) -> None:
        for role in self.composed.roles:
            module = named(models, role, what="role", where="detection")
            if not isinstance(module, PillarDetector):
                continue  # an encoder, or another detector of the same batch
            if module.grid != self.grid:
                raise BadSetting(
                    f"role '{role}': its grid is {module.grid}, the objective's {self.grid}; "
                    "teacher and student need one grid"
                )
            if role == self.student and module.stride != self.stride:
                raise BadSetting(
                    f"role '{role}': its head's stride is {module.stride}, the objective's "
                    f"{self.stride}; make them equal"
                )
