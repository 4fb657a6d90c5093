"""A batch's columns as mmdetection3d wants them: lists of clouds, voxels, boxes.

B: clouds. P: voxels of all clouds. M: points that a voxel holds at most. C: numbers a point.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from stillhouse.data.data import row_of
from stillhouse.errors import BadData
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Tensors
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.detectors.found import Bounds
from stillhouse_pointcloud.mmdet.library import imported

# columns that `Detector.voxelised` adds to a batch
POINTS, COUNTS, CELLS, OFFSETS = "voxel_points", "voxel_counts", "voxel_cells", "voxel_offsets"
# how other data sets name our classes
ALIASES: Mapping[str, str] = {"bicycle": "cyclist", "person": "pedestrian", "vehicle": "car"}
NONE = -1  # the label of a detector's class that is none of ours


@dataclass(frozen=True, kw_only=True)
class Points:
    """What a detector reads of a cloud: `channels` numbers a point; x, y, z within `range` (from,
    to; metres); exactly `sample` points, those beyond `far` metres kept first.
    """

    channels: int
    range: tuple[float, ...] | None
    sample: int | None
    far: float | None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Points":  # Any: JSON values
        bounds = record["range"]
        return cls(
            channels=record["channels"],
            range=None if bounds is None else tuple(bounds),
            sample=record["sample"],
            far=record["far"],
        )

    def cloud(self, points: Tensor) -> Tensor:
        """The points as the detector reads them. Channels that our data has not (the time since the
        sweep) are 0.

        Differs from mmdetection3d's PointSample: nothing is drawn; of the near points every n-th is
        taken, and too few are repeated in order, so that the same cloud gives the same points.
        """
        if self.range is not None:
            low, high = points.new_tensor(self.range).split(3)
            points = points[((points[:, :3] >= low) & (points[:, :3] < high)).all(dim=1)]
        if self.channels > points.shape[1]:
            extra = points.new_zeros(len(points), self.channels - points.shape[1])
            points = torch.cat([points, extra], dim=1)
        points = points[:, : self.channels].contiguous()
        return points if self.sample is None or not len(points) else self._sampled(points)

    def _sampled(self, points: Tensor) -> Tensor:
        assert self.sample is not None
        if len(points) <= self.sample:
            index = torch.arange(self.sample, device=points.device) % len(points)
            return points[index]
        far = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        if self.far is not None:
            far = points[:, :3].norm(dim=1) >= self.far
        rows = torch.cat([_spread(far.nonzero()[:, 0], self.sample), (~far).nonzero()[:, 0]])
        kept = min(int(far.sum()), self.sample)
        near = _spread(rows[kept:], self.sample - kept)
        return points[torch.cat([rows[:kept], near]).sort().values]


def bounds_of(limits: Sequence[float] | None) -> Bounds | None:
    """What is seen from above of x, y, z from and to."""
    if limits is None:
        return None
    return Bounds(x=(limits[0], limits[3]), y=(limits[1], limits[4]))


def _spread(rows: Tensor, count: int) -> Tensor:
    """`count` of the rows (all, if they are fewer), evenly apart."""
    if len(rows) <= count:
        return rows
    return rows[torch.arange(count, device=rows.device) * len(rows) // max(1, count)]


def clouds(batch: Tensors, points: Points) -> list[Tensor]:
    """The clouds of a batch; BadData for one that is empty or not finite."""
    values = named(batch, "points", what="column", where="detector")
    bounds = named(batch, "points_offsets", what="column", where="detector").tolist()
    made: list[Tensor] = []
    for row, (start, stop) in enumerate(pairwise(bounds)):
        given = values[start:stop]
        if not bool(given.isfinite().all()):
            raise BadData(f"{_frame(batch, row)}: NaN or infinite points; leave them out")
        cloud = points.cloud(given)
        if not len(cloud):
            raise BadData(
                f"{_frame(batch, row)}: none of its {stop - start} points is within the detector's "
                "range; leave the frame out, or take a detector that looks there"
            )
        made.append(cloud)
    return made


def _frame(batch: Tensors, row: int) -> str:
    return f"frame {int(batch['id'][row])}" if "id" in batch else f"cloud {row} of the batch"


def voxel_columns(voxelise: Any, given: Sequence[Tensor]) -> dict[str, Tensor]:  # Any: mmdet3d's
    """mmdetection3d's hard voxels of each cloud: voxel_points [P, M, C], filled up with zeros;
    voxel_counts int64 [P], how many of them there are; voxel_cells int32 [P, 3] (z, y, x); and
    voxel_offsets [B + 1].
    """
    parts = [voxelise(cloud) for cloud in given]
    for row, (cloud, part) in enumerate(zip(given, parts, strict=True)):
        if not len(part[0]):
            raise BadData(
                f"cloud {row} of the batch: none of its {len(cloud)} points is in a voxel of the "
                "detector; leave the frame out, or take a detector that looks there"
            )
    lengths = torch.tensor([0, *(len(part[0]) for part in parts)], device=given[0].device)
    return {
        POINTS: torch.cat([part[0] for part in parts]),
        CELLS: torch.cat([part[1] for part in parts]),
        COUNTS: torch.cat([part[2] for part in parts]).long(),
        OFFSETS: lengths.cumsum(0),
    }


def voxel_inputs(batch: Tensors) -> dict[str, Tensor]:
    """The columns of `voxel_columns` as mmdetection3d's networks take them."""
    counts = batch[OFFSETS].diff()
    cloud = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    cells = batch[CELLS]
    return {
        # a copy: PillarFeatureNet writes its offsets over its input, and another role reads it too
        "voxels": batch[POINTS].clone(),
        "num_points": batch[COUNTS].to(cells.dtype),
        "coors": torch.cat([cloud[:, None].to(cells.dtype), cells], dim=1),
    }


def own_labels(classes: Sequence[str]) -> list[int]:
    """For each of our `CLASSES` the detector's number of it, `NONE` where it has none."""
    known = [ALIASES.get(name.lower(), name.lower()) for name in classes]
    return [known.index(name.lower()) if name.lower() in known else NONE for name in CLASSES]


def our_labels(classes: Sequence[str]) -> list[int]:
    """For each of the detector's classes our number of it, or `NONE`."""
    own = own_labels(classes)
    return [own.index(label) if label in own else NONE for label in range(len(classes))]


def truth(
    batch: Tensors, classes: Sequence[str], *, numbers: int, bounds: Sequence[float] | None
) -> list[Any]:  # Any: mmdet3d's Det3DDataSample
    """mmdetection3d's samples of a batch, with its boxes where it has some.

    Boxes whose centre is outside `bounds` (seen from above) and those of a class that the detector
    has not are left out, as its own pipelines do. `numbers`: of a box, 7, or 9 with a velocity,
    which our data does not have and is 0. The columns ignored and difficulty are not read: to
    mmdetection3d what is not labelled is background.
    """
    structures, instances = imported("mmdet3d.structures"), imported("mmengine.structures")
    made: list[Any] = []
    labels_of = own_labels(classes)
    for row in range(len(batch["points_offsets"]) - 1):
        sample = structures.Det3DDataSample()
        sample.set_metainfo(
            {
                "box_type_3d": structures.LiDARInstance3DBoxes,
                "box_mode_3d": structures.Box3DMode.LIDAR,
            }
        )
        if "boxes" in batch:
            boxes, ours = row_of(batch, "boxes", row), row_of(batch, "labels", row)
            labels = ours.new_tensor(labels_of)[ours]
            kept = labels != NONE
            if bounds is not None:
                low, high = boxes.new_tensor(bounds[0:2]), boxes.new_tensor(bounds[3:5])
                kept &= ((boxes[:, :2] > low) & (boxes[:, :2] < high)).all(dim=1)
            boxes = torch.cat([boxes, boxes.new_zeros(len(boxes), numbers - 7)], dim=1)[kept]
            sample.gt_instances_3d = instances.InstanceData(
                # a copy: it moves z from the centre to the bottom in place
                bboxes_3d=structures.LiDARInstance3DBoxes(
                    boxes.clone(), box_dim=numbers, origin=(0.5, 0.5, 0.5)
                ),
                labels_3d=labels[kept],
            )
        made.append(sample)
    return made
