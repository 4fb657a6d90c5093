"""PointDistiller inside a training: the loss as a role that reads two detectors, and its term.

P: pillars of a batch's clouds. Ct, Cs: channels of teacher and student.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.data.data import Data
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import named, pick
from stillhouse.objectives.objective import Models, Tensors
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


@dataclass(frozen=True, kw_only=True)
class GraphTerm:
    """The loss that a `GraphRole` gave."""

    role: str = "graphs"

    def __call__(
        self,
        outputs: Mapping[str, Tensors],
        batch: Tensors,  # noqa: ARG002  the role has read it
        *,
        progress: float,  # noqa: ARG002  the same all along
    ) -> Tensor:
        return pick(outputs, self.role, "loss")


@dataclass(frozen=True, kw_only=True)
class GraphState:
    """What the trained encoders say of `data`: graph_kd_loss, the loss between teacher and student,
    and teacher_variance, the variance of |G_i^T| over all graphs, near 0 where the encoders have
    collapsed; means over batches, running statistics in the BatchNorms.
    """

    teacher: str = "teacher"
    student: str = "student"
    graphs: str = "graphs"
    batch: int = 4

    def __call__(self, models: Models, data: Data) -> Mapping[str, float]:
        roles = (self.teacher, self.student)
        device = next(models[self.graphs].parameters()).device
        found: list[Tensor] = []
        for rows in data.batches(self.batch, rng=None):
            moved = {name: value.to(device) for name, value in rows.items()}
            fed = {
                f"{name}.{output}": value
                for name, role in zip(("teacher", "student"), roles, strict=True)
                for output, value in models[role](moved).items()
            }
            said = models[self.graphs](fed)
            found.append(torch.stack([said["loss"], said["teacher_variance"]]).double().cpu())
        if not found:
            raise BadData("the evaluation data hold no cloud")
        loss, variance = torch.stack(found).mean(dim=0).tolist()
        return {"graph_kd_loss": loss, "teacher_variance": variance}
