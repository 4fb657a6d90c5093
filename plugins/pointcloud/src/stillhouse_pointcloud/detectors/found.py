"""From a head's maps to boxes: scores, decoding, and the most confident of boxes that overlap."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.objective import Tensors
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.detectors.anchors import decode
from stillhouse_pointcloud.standalone import suppressed

# from x, y, z to x, y, z, metres
Limits = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Detections of one cloud, the most confident first; on the CPU."""

    boxes: Float[Tensor, "M 7"]
    scores: Float[Tensor, " M"]
    labels: Integer[Tensor, " M"]


@dataclass(frozen=True, kw_only=True)
class Picking:
    """Which boxes are kept: of each class the `before` most confident with a score of at least
    `score`, without those that share more than `overlap` (IoU from above, exact) with a more
    confident one, and of all classes the `most` most confident. KITTI's settings of mmdet3d, with
    twice as many boxes.
    """

    score: float = 0.1
    overlap: float = 0.01
    before: int = 100
    most: int = 100

    def __post_init__(self) -> None:
        if not (0 <= self.score < 1 and 0 <= self.overlap < 1):
            given = f"{self.score}, {self.overlap}"
            raise BadSetting(f"picking: score and overlap must be >= 0 and < 1 (got {given})")
        if min(self.before, self.most) < 1:
            given = f"{self.before}, {self.most}"
            raise BadSetting(f"picking: before and most must be >= 1 (got {given})")


PICKING = Picking()


@runtime_checkable
class Detector(Protocol):
    """What the metrics and figures need of a role, whatever network it is."""

    def __call__(self, batch: Tensors) -> Mapping[str, Tensor]: ...
    def boxes(self, outputs: Tensors, picking: Picking) -> list[Found]: ...


@runtime_checkable
class Area(Protocol):
    """Where a detector looks: from and to, metres, to the front (x) and to the left (y)."""

    @property
    def x(self) -> tuple[float, float]: ...
    @property
    def y(self) -> tuple[float, float]: ...


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The `Area` of a detector that has no `PillarGrid`."""

    x: tuple[float, float]
    y: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Held:
    """What stands in the voxels of a batch's clouds. T: points. P: voxels."""

    batch: Tensors  # with the voxels, as the detector reads it
    points: Float[Tensor, "T numbers"]  # x, y, z first; those of a voxel together
    counts: Integer[Tensor, " P"]  # points in each
    offsets: Integer[Tensor, " bounds"]  # of the clouds' voxels


@runtime_checkable
class Placed(Detector, Protocol):
    """A detector with a range of detection; None: everywhere."""

    @property
    def area(self) -> Area | None: ...


@runtime_checkable
class Voxelised(Protocol):
    """A detector whose voxels can be drawn; `held` raises BadData where it has none."""

    def __call__(self, batch: Tensors) -> Mapping[str, Tensor]: ...
    def held(self, batch: Tensors) -> Held: ...


def detector(models: Mapping[str, object], role: str) -> Detector:
    """The role, checked: BadData where it finds no boxes."""
    found = models[role]
    if not isinstance(found, Detector):
        raise BadData(f"role '{role}': a {type(found).__name__} finds no boxes; give a detector")
    return found


def flat(found: Float[Tensor, "B maps h w"], numbers: int) -> Float[Tensor, "B A numbers"]:
    """A head's map as rows of `numbers`, one an anchor, in the anchors' order."""
    return found.permute(0, 2, 3, 1).reshape(len(found), -1, numbers)


def picked(
    cls: Tensor, box: Tensor, direction: Tensor, *, anchors: Tensor, picking: Picking
) -> list[Found]:
    """The boxes of each cloud of a batch."""
    scores = flat(cls, len(CLASSES)).float().sigmoid()
    boxes, halves = flat(box, 7).float(), flat(direction, 2).argmax(2)
    return [_one(*maps, anchors, picking) for maps in zip(scores, boxes, halves, strict=True)]


def _one(scores: Tensor, boxes: Tensor, halves: Tensor, at: Tensor, picking: Picking) -> Found:
    parts: list[tuple[Tensor, Tensor, int]] = []
    for label in range(len(CLASSES)):
        sure, rows = scores[:, label].sort(descending=True, stable=True)
        rows = rows[: picking.before][sure[: picking.before] >= picking.score]
        decoded = decode(boxes[rows], halves[rows], at[rows]).cpu()
        kept = torch.from_numpy(suppressed(decoded.double().numpy(), picking.overlap))
        parts.append((decoded[kept], scores[rows, label].cpu()[kept], label))
    every = torch.cat([part[0] for part in parts])
    score = torch.cat([part[1] for part in parts])
    labels = torch.cat([torch.full((len(part[1]),), part[2]) for part in parts])
    order = score.sort(descending=True, stable=True).indices[: picking.most]
    return Found(boxes=every[order], scores=score[order], labels=labels[order])
