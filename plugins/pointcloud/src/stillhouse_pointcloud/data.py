"""Frames for training: read from a KITTI folder or from arrays, checked, in ragged columns."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from stillhouse.data import (
    Columns,
    Ragged,
    check_apart,
    note_left_out,
    visible_files,
)
from stillhouse.data.data import select
from stillhouse.errors import BadData, BadSetting
from stillhouse.work import Work
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.formats import (
    MAX_OCCLUSION,
    MAX_TRUNCATION,
    MIN_HEIGHT,
    NEIGHBOURS,
    Label,
)
from stillhouse_pointcloud.frames import Described, Frame, described, find_frames, seen
from stillhouse_pointcloud.infos import folder_of, read_infos
from stillhouse_pointcloud.sweeps import checked, read_bin

PORTS = {"train": "train", "val": "test"}  # KITTI's val is what papers report on
# ragged columns: the shape of a row, and its type
RAGGED: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {
    "points": ((4,), torch.float32),
    "boxes": ((7,), torch.float32),
    "labels": ((), torch.int64),
    "difficulty": ((), torch.int64),
    "ignored": ((7,), torch.float32),
    "ignored_labels": ((), torch.int64),
}


@dataclass(frozen=True, kw_only=True)
class ReadKitti:
    """A `make`: the port "source" to ports train, validation and test, of a frame a row.

    Ragged columns: points float32 [total, 4] (x, y, z in metres, reflectance), boxes float32
    [total, 7] (see `boxes`), labels int64 [total] (0 Car, 1 Pedestrian, 2 Cyclist), difficulty
    int64 [total] (0 easy, 1 moderate, 2 hard, -1 none of them), and of the Van and Person_sitting,
    which count neither for nor against Car and Pedestrian, ignored float32 [total, 7] and
    ignored_labels int64 [total]. Further: projection float32 [N, 3, 4], LiDAR to pixels times
    depth; image_size int64 [N, 2], width and height in pixels; frames, text: JSON with name, calib
    (P2, R0_rect, Tr_velo_to_cam) and image (below the source).

    Source: a KITTI folder (training/ with velodyne or velodyne_reduced, calib, label_2, image_2;
    ImageSets/train.txt and val.txt); one with mmdetection3d's info files (see `infos`), or one of
    these files, in place of calib, label_2 and ImageSets; or arrays as `samples.scenes` gives.
    `val` is the port test;
    `validation` of the training frames, drawn by the rng, is validation. `view` keeps the points in
    the camera's image only, as KITTI's labels do.
    """

    validation: float = 0.1
    view: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.validation < 1:
            raise BadSetting(f"validation must be > 0 and < 1 (got {self.validation})")

    def __call__(
        self,
        inputs: Mapping[str, Any],  # Any: arrays by name, or a Path
        *,
        work: Work,
    ) -> Mapping[str, Columns]:
        source = inputs["source"]
        if isinstance(source, Mapping):
            made = {split: from_arrays(source, split) for split in ("train", "test")}
        elif isinstance(source, Path):
            folder = folder_of(source)
            frames = read_infos(folder) or find_frames(folder)
            _check_clouds(frames)
            made = {PORTS[s]: self._columns(folder, frames[s]) for s in frames}
            _check_objects(folder, made)
        else:
            raise BadData(f"source: a {type(source).__name__}; expected arrays or a KITTI folder")
        held, rest = _parted(len(made["train"]["frames"]), self.validation, work.rng)
        train = made["train"]
        return {
            "train": select(train, rest),
            "validation": select(train, held),
            "test": made["test"],
        }

    def _columns(self, source: Path, frames: Sequence[Frame | Described]) -> Columns:
        known = (described(frame) if isinstance(frame, Frame) else frame for frame in frames)
        return packed([self._row(source, frame) for frame in known])

    def _row(self, source: Path, frame: Described) -> dict[str, Any]:  # Any: arrays, and the text
        calib, points = frame.calib, read_bin(frame.points)
        if self.view:
            points = seen(points, frame)
        about = {
            "name": frame.name,
            "calib": {
                "P2": calib.p2.tolist(),
                "R0_rect": calib.r0_rect.tolist(),
                "Tr_velo_to_cam": calib.tr_velo_to_cam.tolist(),
            },
            "image": frame.image.relative_to(source).as_posix(),
        }
        columns = labelled(frame.labels)
        return {
            "points": points,
            **columns,
            "projection": calib.to_image,
            "image_size": frame.size,
            "frames": json.dumps(about),
        }


def _check_clouds(frames: Mapping[str, Sequence[Frame | Described]]) -> None:
    """Raises BadData for a cloud that is in both splits; says which are in none."""
    files = {split: [frame.points for frame in found] for split, found in frames.items()}
    check_apart({split: [(str(file), file) for file in found] for split, found in files.items()})
    used = [file for found in files.values() for file in found]
    note_left_out(used[0].parent, visible_files(used[0].parent), used)


def _check_objects(folder: Path, made: Mapping[str, Columns]) -> None:
    """Raises BadData where nothing can be learned, or nothing that was learned be scored."""
    where, kinds = folder / "training" / "label_2", f"{', '.join(CLASSES[:-1])} or {CLASSES[-1]}"
    if len(cast(Ragged, made["train"]["boxes"]).values) == 0:
        raise BadData(f"{where}: no frame of train.txt has a {kinds}; there is nothing to learn")
    if not bool((cast(Ragged, made["test"]["difficulty"]).values >= 0).any()):
        raise BadData(
            f"{where}: no frame of val.txt has a {kinds} that counts (higher than "
            f"{MIN_HEIGHT[-1]:g} pixels, occlusion 0 to {MAX_OCCLUSION[-1]}, truncation at most "
            f"{MAX_TRUNCATION[-1]}); there is nothing to score on"
        )


def labelled(labels: Sequence[Label]) -> dict[str, NDArray[Any]]:  # Any: floats and integers
    """The columns boxes, labels, difficulty, ignored and ignored_labels of one frame's labels."""
    known = [label for label in labels if label.type in CLASSES]
    near = [label for label in labels if label.type in NEIGHBOURS]
    return {
        "boxes": np.array([label.box for label in known]).reshape(-1, 7),
        "labels": np.array([CLASSES.index(label.type) for label in known], dtype=np.int64),
        "difficulty": np.array([label.difficulty for label in known], dtype=np.int64),
        "ignored": np.array([label.box for label in near]).reshape(-1, 7),
        "ignored_labels": np.array(
            [CLASSES.index(NEIGHBOURS[label.type]) for label in near], dtype=np.int64
        ),
    }


def packed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor | Ragged | list[str]]:
    """Frames as columns: arrays by the names of `RAGGED`, projection [3, 4], image_size (width,
    height), frames (text).
    """
    columns: dict[str, Tensor | Ragged | list[str]] = {}
    for name, (shape, dtype) in RAGGED.items():
        parts = [
            torch.as_tensor(np.asarray(row[name])).to(dtype).reshape(-1, *shape) for row in rows
        ]
        lengths = torch.tensor([0, *(len(part) for part in parts)])
        columns[name] = Ragged(values=torch.cat(parts), offsets=lengths.cumsum(0))
    columns["projection"] = torch.stack(
        [torch.as_tensor(np.asarray(row["projection"])).float() for row in rows]
    )
    columns["image_size"] = torch.tensor([row["image_size"] for row in rows], dtype=torch.int64)
    columns["frames"] = [row["frames"] for row in rows]
    return columns


def from_arrays(arrays: Mapping[str, Any], split: str) -> Columns:  # Any: numpy arrays
    """The columns of a split of arrays "<split>_<column>" and, of ragged ones, those and
    "<split>_<column>_offsets" [N + 1]; BadData names what is missing or wrong.
    """

    def array(name: str) -> NDArray[Any]:
        if f"{split}_{name}" not in arrays:
            raise BadData(f"source: no {split}_{name}; expected what samples.scenes gives")
        return np.asarray(arrays[f"{split}_{name}"])

    columns: dict[str, Tensor | Ragged | list[str]] = {}
    for name, (shape, dtype) in RAGGED.items():
        values, offsets = array(name), array(f"{name}_offsets").astype(np.int64)
        if values.shape[1:] != shape or offsets[-1] != len(values):
            found = f"{list(values.shape)} up to {offsets[-1]}"
            raise BadData(
                f"{split}_{name}: {found}; expected [total, {', '.join(map(str, shape))}]"
            )
        columns[name] = Ragged(
            values=torch.as_tensor(values).to(dtype), offsets=torch.as_tensor(offsets)
        )
    bounds = array("points_offsets")
    for row, (start, stop) in enumerate(pairwise(bounds)):
        checked(array("points")[start:stop], f"{split}_points: frame {row}")
    columns["projection"] = torch.as_tensor(array("projection")).float()
    columns["image_size"] = torch.as_tensor(array("image_size")).to(torch.int64)
    names = [{"name": f"{split}-{row:06d}"} for row in range(len(bounds) - 1)]
    columns["frames"] = [json.dumps(name) for name in names]
    return columns


def _parted(count: int, fraction: float, rng: Generator) -> tuple[Tensor, Tensor]:
    """The rows kept for validation, at least one, and the rest, each in order."""
    if count < 2:
        raise BadData(f"train: {count} frame(s); keeping some for validation needs two")
    kept = min(count - 1, max(1, round(fraction * count)))
    order = torch.randperm(count, generator=rng)
    return order[:kept].sort().values, order[kept:].sort().values
