"""A KITTI folder as mmdetection3d 1.x wants it: info files, reduced clouds, and the training
frames' objects cut out (its ground-truth database).
"""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.errors import BadData
from stillhouse.files import storage, writing, writing_file
from stillhouse_pointcloud.boxes import from_bottom, inside
from stillhouse_pointcloud.formats import Array, Calibration, Label, text
from stillhouse_pointcloud.frames import (
    FULL,
    REDUCED,
    Described,
    cloud_folder,
    described,
    find_frames,
    seen,
)
from stillhouse_pointcloud.infos import INFOS
from stillhouse_pointcloud.sweeps import Points, read_bin

# the order of mmdetection3d's KittiDataset, which its labels count by; DontCare is -1
CATEGORIES = ("Pedestrian", "Cyclist", "Car", "Van", "Truck", "Person_sitting", "Tram", "Misc")
DATABASE, DATABASE_INFOS = "kitti_gt_database", "kitti_dbinfos_train.pkl"


def write_infos(source: Path, out: Path) -> dict[str, int]:
    """Writes mmdetection3d's files of the KITTI folder `source` into `out`, over any that are
    there; how many frames and objects each has. Raises StorageError where `out` is no folder.

    Files: kitti_infos_train.pkl and kitti_infos_val.pkl by ImageSets, which KittiDataset reads;
    kitti_dbinfos_train.pkl and kitti_gt_database/, the training frames' objects, which ObjectSample
    reads; and, where `source` has whole scans, training/velodyne_reduced/, of each of these frames
    the points within the image, of which stock configurations train.
    """
    frames = {split: [described(f) for f in found] for split, found in find_frames(source).items()}
    with storage(out):
        out.mkdir(parents=True, exist_ok=True)
    if cloud_folder(source).name == FULL:
        _reduce([frame for found in frames.values() for frame in found], out)
    rows = {s: [_info(source, frame) for frame in found] for s, found in frames.items()}
    objects = _database(frames["train"], out)
    for split, infos in rows.items():
        meta = {
            "categories": {name: i for i, name in enumerate(CATEGORIES)},
            "dataset": "kitti",
            "info_version": "1.1",
        }
        _dump(out / INFOS[split], {"metainfo": meta, "data_list": infos})
    counts = {INFOS[split]: len(infos) for split, infos in rows.items()}
    return {**counts, DATABASE_INFOS: objects}


def _seen(frame: Described) -> Points:
    """The points within the frame's image, of which there must be some."""
    points = read_bin(frame.points)
    return points if frame.points.parent.name != FULL else seen(points, frame)


def _reduce(frames: Sequence[Described], out: Path) -> None:
    for frame in frames:
        with writing_file(out / "training" / REDUCED / frame.points.name) as aside:
            _seen(frame).tofile(aside)


def _info(source: Path, frame: Described) -> dict[str, Any]:  # Any: JSON values
    """A frame as lists and numbers: matrices filled up to [4, 4]."""
    calib, points = frame.calib, _seen(frame).astype(np.float64)
    plane = source / "training" / "planes" / f"{frame.name}.txt"
    return {
        "sample_idx": _number(frame.name),
        "images": {
            "CAM2": {
                "img_path": frame.image.name,
                "height": frame.size[1],
                "width": frame.size[0],
                "cam2img": _filled(calib.p2),
                "lidar2cam": calib.to_camera.tolist(),
                "lidar2img": _filled(calib.to_image),
            },
            "R0_rect": _filled(calib.r0_rect),
        },
        "lidar_points": {
            "num_pts_feats": 4,
            "lidar_path": frame.points.name,
            "Tr_velo_to_cam": _filled(calib.tr_velo_to_cam),
        },
        "instances": [_instance(i, one, calib, points) for i, one in enumerate(frame.labels)],
        **({"plane": _plane(plane)} if plane.is_file() else {}),
    }


def _number(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


def _filled(matrix: Array) -> list[list[float]]:
    whole = np.eye(4)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    return whole.tolist()


def _plane(file: Path) -> list[float]:
    """The ground in the camera's coordinates, a x + b y + c z + d = 0, of AVOD's fourth line; its
    normal has length 1 and points up (-y), as in mmdetection3d.
    """
    try:
        plane = np.array([float(word) for word in text(file).splitlines()[3].split()]).reshape(4)
    except (IndexError, ValueError) as error:
        raise BadData(f"{file}: line 4 is not 4 numbers, a plane as AVOD has it") from error
    plane = -plane if plane[1] > 0 else plane
    return (plane / np.linalg.norm(plane[:3])).tolist()


def _instance(
    i: int, one: Label, calib: Calibration, points: Array
) -> dict[str, Any]:  # Any: JSON values
    """A label: bbox_3d is x, y, z (the bottom's middle), length, height, width, rotation_y in the
    rectified camera; num_lidar_pts of a DontCare is -1.
    """
    high, wide, long, x, y, z, turn = one.camera.tolist()
    number = CATEGORIES.index(one.type) if one.type in CATEGORIES else -1
    seen = calib.p2 @ np.array([x, y - high / 2, z, 1.0])
    box = from_bottom(_stock_box(one, calib)[None])[0]
    held = int(inside(points, box).sum()) if number >= 0 else -1
    return {
        "bbox": list(one.box_2d),
        "bbox_label": number,
        "bbox_3d": [x, y, z, long, high, wide, turn],
        "bbox_label_3d": number,
        "depth": float(seen[2]),
        "center_2d": (seen[:2] / seen[2]).tolist() if seen[2] else [0.0, 0.0],
        "num_lidar_pts": held,
        "difficulty": one.difficulty,
        "truncated": one.truncation,
        "occluded": one.occlusion,
        "alpha": one.alpha,
        "score": 0.0,
        "index": i if number >= 0 else -1,
        "group_id": i,
    }


def _stock_box(one: Label, calib: Calibration) -> Array:
    """The box [7] as mmdetection3d moves it to the LiDAR, by the middle of its bottom, where we
    move its centre: the camera leans a little, which is a centimetre. z at the bottom.
    """
    x, y, z = one.camera[3:6]
    at = np.linalg.inv(calib.to_camera) @ np.array([x, y, z, 1.0])
    return np.array([*at[:3], *one.box[3:7]])


def _database(frames: Sequence[Described], out: Path) -> int:
    """Cuts out the objects of the frames, whose points are counted from the middle of the box's
    bottom, and lists them by class; how many there are.
    """
    listed: dict[str, list[dict[str, Any]]] = {}  # Any: numbers, a text and an array
    count = 0
    with writing(out / DATABASE) as aside:
        for frame in frames:
            points = _seen(frame)
            for i, one in enumerate(frame.labels):
                if one.type not in CATEGORIES:
                    continue
                box = _stock_box(one, frame.calib)
                held = points[inside(points.astype(np.float64), from_bottom(box[None])[0])]
                bottom = box.astype(np.float32)
                held[:, :3] -= bottom[:3]
                name = f"{_number(frame.name)}_{one.type}_{i}.bin"
                held.tofile(aside / name)
                listed.setdefault(one.type, []).append(
                    {
                        "name": one.type,
                        "path": f"{DATABASE}/{name}",
                        "image_idx": _number(frame.name),
                        "gt_idx": i,
                        "box3d_lidar": bottom,
                        "num_points_in_gt": len(held),
                        "difficulty": one.difficulty,
                        "group_id": count,
                    }
                )
                count += 1
    _dump(out / DATABASE_INFOS, listed)
    return count


def _dump(file: Path, value: object) -> None:
    with writing_file(file) as aside:
        aside.write_bytes(pickle.dumps(value, protocol=4))
