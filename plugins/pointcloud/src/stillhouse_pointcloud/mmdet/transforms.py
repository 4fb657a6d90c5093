"""Augmentation by mmdetection3d's own transforms, as a pure function of (seed, sample id, view)."""

import math
import pickle
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.errors import BadSetting, MissingExtra
from stillhouse.objectives.objective import Tensors
from stillhouse.training import mix
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.detectors.found import Limits
from stillhouse_pointcloud.mmdet.library import EXTRA, imported, missing, quiet
from stillhouse_pointcloud.pasted import SAMPLE, repacked, sample_points, sampled_row

NONE = -1  # the label of a box that is there and of none of the classes: an ignored one


@dataclass(frozen=True, kw_only=True)
class LibraryAugment:
    """ObjectSample up to `objects` of each class (0: none), RandomFlip3D, GlobalRotScaleTrans,
    PointsRangeFilter and PointShuffle of mmdetection3d; without a `range` no PointsRangeFilter.

    What is pasted are the frame's ground-truth samples (see `pasted`). Boxes outside the range
    stay, as a detector leaves them out itself; ignored boxes are kept clear of and move with the
    scene. View 0 is the scene as it is. Raises MissingExtra without mmdetection3d.
    """

    objects: int
    range: Limits | None
    flip: float = 0.5
    rotation: float = math.pi / 4
    scale: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objects < 0:
            raise BadSetting(f"objects must be >= 0 (got {self.objects})")
        if package := missing():
            raise MissingExtra("augmentation=mmdet3d", package, install=EXTRA)

    def __call__(self, batch: Tensors) -> Tensors:
        pairs = enumerate(zip(batch["id"].tolist(), batch["view"].tolist(), strict=True))
        return repacked(batch, [self._row(batch, row, *pair) for row, pair in pairs])

    def _row(self, batch: Tensors, at: int, number: int, view: int) -> Tensors:
        row = sampled_row(batch, at, pasting=self.objects > 0)
        if view == 0:
            return row
        with drawn(mix(self.seed, number, view)), quiet():
            return self._seen(row)

    def _seen(self, row: Tensors) -> Tensors:
        transforms = imported("mmdet3d.datasets.transforms")
        scene, count = _scene(row), len(row["boxes"]) + len(row["ignored"])
        difficulty = row["difficulty"]
        if self.objects:
            scene = self._filled(scene, row)
            samples = _boxes(row[f"{SAMPLE}boxes"]).tensor
            new = scene["gt_bboxes_3d"].tensor[count:]
            which = (new[:, None] == samples).all(dim=2).int().argmax(dim=1)
            difficulty = torch.cat([difficulty, row[f"{SAMPLE}difficulty"][which]])
        cuts = []
        if self.range is not None:
            cuts = [transforms.PointsRangeFilter(point_cloud_range=list(self.range))]
        for transform in (
            transforms.RandomFlip3D(sync_2d=False, flip_ratio_bev_horizontal=self.flip),
            transforms.GlobalRotScaleTrans(
                rot_range=[-self.rotation, self.rotation],
                scale_ratio_range=[1 - self.scale, 1 + self.scale],
            ),
            *cuts,
            transforms.PointShuffle(),
        ):
            scene = transform(scene)
        return {**_columns(scene, len(row["boxes"]), count), "difficulty": difficulty}

    def _filled(self, scene: Any, row: Tensors) -> Any:  # Any: mmdet3d's dict of a scene
        """The scene after ObjectSample, whose database is the frame's samples."""
        infos, points = _database(row)
        if not infos:
            return scene
        with tempfile.NamedTemporaryFile(suffix=".pkl") as file:
            file.write(pickle.dumps(infos))
            file.flush()
            sampler = {
                "type": "DataBaseSampler",
                "info_path": file.name,
                "data_root": "",
                "rate": 1.0,
                "prepare": {},
                "sample_groups": dict.fromkeys(infos, self.objects),
                "classes": list(CLASSES),
                "points_loader": {"type": _Loader, "points": points},
            }
            sample = imported("mmdet3d.datasets.transforms").ObjectSample(db_sampler=sampler)
        return sample(scene)


class _Loader:
    """A loader of mmdetection3d's database that has the points at hand."""

    def __init__(self, points: Mapping[str, Tensor]) -> None:
        self.points = points

    def __call__(self, results: Mapping[str, Any]) -> dict[str, Any]:  # Any: mmdet3d's
        return {"points": _cloud(self.points[results["lidar_points"]["lidar_path"]])}


def _cloud(points: Tensor) -> Any:  # Any: mmdet3d's LiDARPoints
    # a copy: it is moved in place
    return imported("mmdet3d.structures").LiDARPoints(points.clone(), points_dim=points.shape[1])


def _boxes(boxes: Tensor) -> Any:  # Any: mmdet3d's LiDARInstance3DBoxes
    """Theirs, of z at the bottom; in separate memory."""
    kind = imported("mmdet3d.structures").LiDARInstance3DBoxes
    return kind(boxes.clone(), origin=(0.5, 0.5, 0.5))


def _scene(row: Tensors) -> dict[str, Any]:  # Any: mmdet3d's
    labels = torch.cat([row["labels"], row["labels"].new_full((len(row["ignored"]),), NONE)])
    return {
        "points": _cloud(row["points"]),
        "gt_bboxes_3d": _boxes(torch.cat([row["boxes"], row["ignored"]])),
        "gt_labels_3d": labels.numpy(),
    }


def _database(
    row: Tensors,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Tensor]]:  # Any: as mmdet3d lists objects
    """The samples by class, as mmdetection3d lists them, and the points of each by its path,
    counted from the middle of the box's bottom.
    """
    infos: dict[str, list[dict[str, Any]]] = {}
    points: dict[str, Tensor] = {}
    boxes = _boxes(row[f"{SAMPLE}boxes"]).tensor
    for i, (part, box) in enumerate(zip(sample_points(row), boxes, strict=True)):
        name = CLASSES[int(row[f"{SAMPLE}labels"][i])]
        points[str(i)] = torch.cat([part[:, :3] - box[:3], part[:, 3:]], dim=1)
        one = {"name": name, "path": str(i), "box3d_lidar": box.numpy()}
        infos.setdefault(name, []).append(one)
    return infos, points


def _columns(scene: Mapping[str, Any], count: int, there: int) -> dict[str, Tensor]:
    """A scene as our columns: `count` boxes, up to `there` ignored ones, then those pasted."""
    boxes = scene["gt_bboxes_3d"]
    yaw = (boxes.tensor[:, 6:7] + math.pi) % (2 * math.pi) - math.pi
    moved = torch.cat([boxes.gravity_center, boxes.tensor[:, 3:6], yaw], dim=1)
    labels = torch.as_tensor(scene["gt_labels_3d"])
    return {
        "points": scene["points"].tensor,
        "boxes": torch.cat([moved[:count], moved[there:]]),
        "labels": torch.cat([labels[:count], labels[there:]]),
        "ignored": moved[count:there],
    }


@contextmanager
def drawn(seed: int) -> Generator[None]:
    """numpy's and torch's global numbers, which mmdetection3d draws from, begin at the seed; and go
    on afterwards as if nothing had been drawn.
    """
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(before)
