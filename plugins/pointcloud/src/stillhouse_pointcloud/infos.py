"""mmdetection3d's info files of a KITTI folder (version 1.1, of mmdetection3d 1.x): read.

`kitti_infos_train.pkl` and `kitti_infos_val.pkl` hold of each frame the calibration, the labels
and the names of its files. `stock` writes them.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.errors import BadData
from stillhouse_pointcloud.camera import image_file, image_size
from stillhouse_pointcloud.formats import TYPES, Array, Calibration, Label, check_rotations, label
from stillhouse_pointcloud.frames import SPLITS, Described, check_once, cloud_folder
from stillhouse_pointcloud.pickles import read_pickle

INFOS = {split: f"kitti_infos_{split}.pkl" for split in SPLITS}
COMMAND = "stillhouse pointcloud kitti-infos"


def folder_of(source: Path) -> Path:
    """The KITTI folder itself, or that of one of its info files."""
    return source.parent if source.is_file() and source.name in INFOS.values() else source


def read_infos(folder: Path) -> dict[str, list[Described]]:
    """The frames of "train" and "val" by the folder's info files; empty where it has none.

    Raises BadData for one file of the two, for the format of mmdetection3d 0.x, and for what is
    missing or wrong in a frame. Clouds are those in training/ by the names of the files alone.
    """
    files = {split: folder / name for split, name in INFOS.items()}
    if not any(file.is_file() for file in files.values()):
        return {}
    for file in files.values():
        if not file.is_file():
            raise BadData(f"{file}: missing beside the other; run: {COMMAND} {folder}")
    clouds = cloud_folder(folder)
    found = {split: _frames(file, clouds) for split, file in files.items()}
    check_once({s: [frame.name for frame in frames] for s, frames in found.items()}, files)
    return found


def _frames(file: Path, clouds: Path) -> list[Described]:
    whole = read_pickle(file)
    if not isinstance(whole, Mapping) or not {"metainfo", "data_list"} <= {*whole}:
        raise BadData(
            f"{file}: a {type(whole).__name__} without metainfo and data_list, as before "
            f"mmdetection3d 1.1; make it anew: {COMMAND} {file.parent}"
        )
    categories = _at(file, whole, "metainfo", "categories")
    if not isinstance(categories, Mapping):
        raise BadData(f"{file}: metainfo.categories is a {type(categories).__name__}, not a dict")
    names = {int(number): str(name) for name, number in categories.items()}
    rows = _list(file, whole, "data_list")
    if not rows:
        raise BadData(f"{file}: no frame in it; expected some")
    return [_frame(f"{file}: frame {i}", row, names, clouds) for i, row in enumerate(rows)]


def _frame(where: str, row: Any, names: Mapping[int, str], clouds: Path) -> Described:
    path = Path(str(_at(where, row, "lidar_points", "lidar_path")))
    points = clouds / path.name
    if not points.is_file():
        raise BadData(f"{points}: missing; {where} names it")
    calib = Calibration(
        p2=_matrix(where, row, (3, 4), "images", "CAM2", "cam2img"),
        r0_rect=_matrix(where, row, (3, 3), "images", "R0_rect"),
        tr_velo_to_cam=_matrix(where, row, (3, 4), "lidar_points", "Tr_velo_to_cam"),
    )
    check_rotations(where, calib)
    camera = _at(where, row, "images", "CAM2")
    folder = clouds.parent / "image_2"
    given = camera.get("img_path")
    image = folder / Path(str(given)).name if given else image_file(folder, path.stem)
    labels = [
        _label(f"{where}: instance {i}", one, names, calib)
        for i, one in enumerate(_list(where, row, "instances"))
    ]
    return Described(
        name=path.stem,
        points=points,
        image=image,
        size=_size(where, camera) or image_size(image, calib),
        calib=calib,
        labels=labels,
    )


def _size(where: str, camera: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height of the image, where the file has them."""
    if not {"width", "height"} <= {*camera}:
        return None
    wide, high = (int(_numbers(where, camera, 1, side)[0]) for side in ("width", "height"))
    if min(wide, high) < 1:
        raise BadData(f"{where}: an image of {wide} x {high} pixels; correct it")
    return wide, high


def _label(where: str, one: Any, names: Mapping[int, str], calib: Calibration) -> Label:
    kind = names.get(int(_numbers(where, one, 1, "bbox_label_3d")[0]), "DontCare")
    if kind not in TYPES:
        raise BadData(f"{where}: type '{kind}'; expected one of {', '.join(TYPES)}")
    x, y, z, long, high, wide, turn = _numbers(where, one, 7, "bbox_3d")
    rest = [_numbers(where, one, 1, name)[0] for name in ("truncated", "occluded", "alpha")]
    outline = _numbers(where, one, 4, "bbox")
    return label(where, kind, [*rest, *outline, high, wide, long, x, y, z, turn], calib)


def _at(where: object, row: Any, *path: str) -> Any:  # Any: what others wrote
    for i, name in enumerate(path, 1):
        if not isinstance(row, Mapping) or name not in row:
            raise BadData(f"{where}: no {'.'.join(path[:i])}; expected mmdetection3d's of KITTI")
        row = row[name]
    return row


def _list(where: object, row: Any, name: str) -> Sequence[Any]:  # Any: what others wrote
    found = _at(where, row, name)
    if not isinstance(found, Sequence):
        raise BadData(f"{where}: {name} is a {type(found).__name__}, not a list; correct it")
    return found


def _numbers(where: str, row: Any, count: int, *path: str) -> list[float]:
    found = _at(where, row, *path)
    try:
        numbers = np.asarray(found, dtype=np.float64).reshape(-1).tolist()
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise BadData(f"{where}: {'.'.join(path)} is not {count} finite numbers; correct it")
    return numbers


def _matrix(where: str, row: Any, shape: tuple[int, int], *path: str) -> Array:
    """The upper left of a matrix that is filled up to [4, 4]."""
    numbers = _numbers(where, row, 16, *path)
    return np.array(numbers).reshape(4, 4)[: shape[0], : shape[1]]
