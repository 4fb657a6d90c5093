"""PointDistiller inside a training: the loss as a role that reads two detectors, and its term.

P: pillars of a batch's clouds. Ct, Cs: channels of teacher and student.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.artifact import Built, Model, save_model
from stillhouse.data.data import Data
from stillhouse.errors import BadData, BadSetting
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work
from stillhouse_pointcloud.objectives import LocalGraphDistillation

PILLARS = "voxels"  # the output that is ragged, and whose importance is the points in each
POINTS = "points"  # of a detector that has no voxels: [B, C, N]
# what a PillarDetector gives that can be distilled, and its channels over the width
LAYERS = {PILLARS: 1, "bev": 1, "backbone.0": 1, "backbone.1": 2, "backbone.2": 4, "neck": 6}


class GraphRole(nn.Module):
    """`LocalGraphDistillation` as a role that `Composed.feeds` gives `teacher` and `student`:
    {"loss": [], "teacher_variance": []}.

    `output` names what both detectors give: "voxels" [P, C], split into its clouds by the student's
    "voxel_offsets" and chosen by its "voxel_counts"; or maps [B, C, H, W] or "points" [B, C, N],
    which need `graphs` with importance "max". `graphs` are LocalGraphDistillation's arguments. The
    encoders are all its parameters: trained beside the student, and no part of it.
    """

    def __init__(
        self,
        *,
        graphs: Mapping[str, Any],  # Any: JSON values
        output: str = PILLARS,
        teacher: str = "teacher",
        student: str = "student",
    ) -> None:
        super().__init__()
        named({**LAYERS, POINTS: 1}, output, what="output", where="graph distillation")
        self.graphs = LocalGraphDistillation(**graphs)
        if output != PILLARS and self.graphs.importance != "max":
            raise BadSetting(
                f"graph distillation: '{output}' is a map, which needs importance 'max' "
                f"(got '{self.graphs.importance}')"
            )
        self.output, self.teacher, self.student = output, teacher, student

    def forward(self, given: Tensors) -> dict[str, Tensor]:
        target, learned = self._read(given, self.teacher), self._read(given, self.student)
        if self.output != PILLARS:
            loss = self.graphs(target, learned)
        else:
            cuts = named(
                given, f"{self.student}.voxel_offsets", what="input", where="graph distillation"
            )
            sizes = cuts.diff().tolist()
            counts = given[f"{self.student}.voxel_counts"]
            loss = self.graphs(target.split(sizes), learned.split(sizes), counts.split(sizes))
        return {"loss": loss, "teacher_variance": self.graphs.teacher_variance}

    def _read(self, given: Tensors, role: str) -> Tensor:
        return named(given, f"{role}.{self.output}", what="input", where="graph distillation")


def graph_feeds(
    output: str, *, teacher: str = "teacher", student: str = "student"
) -> tuple[str, ...]:
    """What a `GraphRole` of this output reads of two detectors."""
    names = (f"{teacher}.{output}", f"{student}.{output}")
    if output != PILLARS:
        return names
    return (*names, f"{student}.voxel_offsets", f"{student}.voxel_counts")


@dataclass(frozen=True, kw_only=True)
class GraphState(Metric):
    """What the trained encoders say of `data`: graph_kd_loss, the loss between teacher and student,
    and teacher_variance, the variance of |G_i^T| over all graphs, near 0 where the encoders have
    collapsed; means over batches, running statistics in the BatchNorms.
    """

    teacher: str = "teacher"
    student: str = "student"
    graphs: str = "graphs"
    batch: int = 4

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        sides = (models[self.teacher], models[self.student])
        return _means(models[self.graphs], *sides, data, self.batch)

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="graph_kd_loss", better="lower"),
            Score(name="teacher_variance", better="neither"),
        )


@dataclass(frozen=True, kw_only=True)
class EarnedShare(Metric):
    """How much of the graph loss's fall the student earned, where its encoders could have it alone.

    start_graph_loss is that of encoders as they are drawn and the student's `first` weights;
    alone_graph_loss that of the encoders `alone`, trained as long while both detectors stayed as
    they were, the student at its first weights; end_graph_loss that of `student` and the `graphs`
    trained with it. Means over the batches of `data`, by whose statistics the BatchNorms of the
    encoders normalise, as in training.

    student_earned_rate = (alone - end) / (start - end): 1 where the encoders alone lower nothing, 0
    where they lower the loss as far without the student, below 0 where they go further. Left out
    where the loss has not fallen.
    """

    teacher: str = "teacher"
    first: str = "first"
    student: str = "student"
    alone: str = "alone"
    graphs: str = "graphs"
    batch: int = 4

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        teacher, first = models[self.teacher], models[self.first]
        alone = copy.deepcopy(models[self.alone]).train()
        both = copy.deepcopy(models[self.graphs]).train()
        fresh = copy.deepcopy(alone)
        for module in fresh.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.reset_parameters()
        start, stayed, end = (
            _means(graphs, teacher, student, data, self.batch)["graph_kd_loss"]
            for graphs, student in ((fresh, first), (alone, first), (both, models[self.student]))
        )
        losses = {
            "start_graph_loss": start,
            "alone_graph_loss": stayed,
            "end_graph_loss": end,
        }
        share = earned(start, stayed, end)
        return losses if share is None else {"student_earned_rate": share, **losses}

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="student_earned_rate", better="higher", unit="%"),
            Score(name="start_graph_loss", better="lower"),
            Score(name="alone_graph_loss", better="lower"),
            Score(name="end_graph_loss", better="lower"),
        )


def earned(start: float, alone: float, end: float) -> float | None:
    """The part of a loss's fall from `start` to `end` that is below `alone`; None where it has not
    fallen.
    """
    return (alone - end) / (start - end) if start > end else None


def _means(
    graphs: nn.Module, teacher: nn.Module, student: nn.Module, data: Data, batch: int
) -> dict[str, float]:
    """The graph loss and the variance of the teacher's graphs, means over the batches."""
    device = next(graphs.parameters()).device
    found: list[Tensor] = []
    for rows in data.batches(batch, rng=None):
        moved = {name: value.to(device) for name, value in rows.items()}
        fed = {
            f"{name}.{output}": value
            for name, module in (("teacher", teacher), ("student", student))
            for output, value in module(moved).items()
        }
        given = graphs(fed)
        found.append(torch.stack([given["loss"], given["teacher_variance"]]).double().cpu())
    if not found:
        raise BadData("the evaluation data hold no cloud")
    loss, variance = torch.stack(found).mean(dim=0).tolist()
    return {"graph_kd_loss": loss, "teacher_variance": variance}


@dataclass(frozen=True, kw_only=True)
class FreshDetector:
    """A `convert` of no port: `model` with the first weights that a training of this `seed` draws
    for it.
    """

    model: Model
    seed: int

    def __call__(
        self,
        inputs: Mapping[str, Any],
        out: Path,
        *,
        work: Work,
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            module = self.model.new()
        save_model(out, Built(spec=self.model, module=module))
