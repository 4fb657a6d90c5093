"""The boxes a trained detector finds in clouds: drawn from above and listed as KITTI's labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from stillhouse.artifact import Built
from stillhouse.data import read_image
from stillhouse.errors import BadData
from stillhouse.files import each_file, free_name, write_text, writing_file
from stillhouse_pointcloud.boxes import CLASSES, NEAR, corners, in_view, project
from stillhouse_pointcloud.camera import image_file, image_size
from stillhouse_pointcloud.detectors import Found
from stillhouse_pointcloud.detectors.found import Placed
from stillhouse_pointcloud.figures import (
    SHOWN,
    Array,
    backdrop,
    found_in_image,
    legend,
    view_from_above,
)
from stillhouse_pointcloud.formats import IMAGE_SIZE, Calibration, camera_numbers, read_calib
from stillhouse_pointcloud.samples import FOCAL, MIDDLE
from stillhouse_pointcloud.sweeps import lower, read_sweep

FOLDER = Path("predictions")
SWEEPS = (".bin", ".feather")
# above the road, metres: KITTI's sensor, and the axle that Argoverse 2 measures from
ARGOVERSE_LOWER = 1.73 - 0.3
# a camera at the sensor's place that looks ahead: x right, y down, z front
NOMINAL = Calibration(
    p2=np.array([[FOCAL, 0, MIDDLE[0], 0], [0, FOCAL, MIDDLE[1], 0], [0, 0, 1, 0]]),
    r0_rect=np.eye(3),
    tr_velo_to_cam=np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]),
)


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """A cloud in the coordinates of KITTI's LiDAR, and what is known of its camera."""

    points: Array
    calib: Calibration
    calib_file: Path | None
    image: Image.Image | None
    size: tuple[int, int]  # of the image, in pixels


def predict(model: Built, inputs: Sequence[Path]) -> Sequence[Mapping[str, Any]]:
    """A row a cloud: its file, how many of each class were found (score >= 0.3), and the files
    written into ./predictions: an image from above, with the camera's where there is one, and the
    boxes as KITTI's results, a line each with its score.

    Clouds: KITTI's .bin, nuScenes' .pcd.bin (turned to KITTI's axes), Argoverse 2's .feather
    (lowered to KITTI's height); a folder stands for all below it. Labels are in a camera's
    coordinates: that of calib/<name>.txt beside the .bin's folder, as in KITTI, else one that looks
    ahead from the sensor ("nominal"). As in training, only points in the camera's view are read.
    Raises MissingData or BadData naming the file.
    """
    module = model.module
    if not isinstance(module, Placed):
        name = model.spec.build.__qualname__
        raise BadData(f"{name}: a model that finds no boxes; give a detector of pointcloud")
    names: set[str] = set()
    return [
        _row(module, file, free_name(file.name.partition(".")[0], names))
        for file in each_file(inputs, SWEEPS, kind="cloud")
    ]


def _row(module: Placed, file: Path, name: str) -> Mapping[str, Any]:
    sweep = read(file)
    found = boxes_in(module, sweep.points)
    drawn, listed = FOLDER / f"{name}.png", FOLDER / f"{name}.txt"
    with writing_file(drawn) as aside:
        _draw(module, sweep, found, aside)
    write_text(listed, "".join(f"{line}\n" for line in lines(found, sweep)))
    counts = torch.bincount(found.labels, minlength=len(CLASSES)).tolist()
    return {
        "file": str(file),
        "points": len(sweep.points),
        **{kind.lower(): n for kind, n in zip(CLASSES, counts, strict=True)},
        "camera": str(sweep.calib_file or "nominal"),
        "drawn": str(drawn),
        "listed": str(listed),
    }


def read(file: Path) -> _Sweep:
    """The points of a sweep that its camera sees."""
    points = read_sweep(file)
    if file.suffix == ".feather":
        points = lower(points, ARGOVERSE_LOWER)
    elif file.name.endswith(".pcd.bin"):  # x right, y front
        points = np.stack([points[:, 1], -points[:, 0], points[:, 2], points[:, 3]], axis=1)
    root, stem = file.resolve().parent.parent, file.name.partition(".")[0]
    calib_file, photo = root / "calib" / f"{stem}.txt", image_file(root / "image_2", stem)
    known = calib_file.is_file()
    calib = read_calib(calib_file) if known else NOMINAL
    size = image_size(photo, calib) if known else IMAGE_SIZE
    shown = known and photo.is_file()
    image = read_image(photo, str(photo), annotated=True) if shown else None
    seen = points[in_view(points.astype(np.float64), calib.to_image, size)]
    if len(seen) == 0:
        raise BadData(f"{file}: no point is in the camera's view; is x to the front?")
    return _Sweep(
        points=seen.astype(np.float64),
        calib=calib,
        calib_file=calib_file if known else None,
        image=image,
        size=size,
    )


def boxes_in(module: Placed, points: Array) -> Found:
    """What the detector finds in one cloud, with a score of at least that of `SHOWN`."""
    assert isinstance(module, nn.Module)
    device = next(module.parameters()).device
    batch = {
        "points": torch.from_numpy(points.astype(np.float32)).to(device),
        "points_offsets": torch.tensor([0, len(points)], device=device),
    }
    with torch.no_grad():
        return module.boxes(module(batch), SHOWN)[0]


def lines(found: Found, sweep: _Sweep) -> list[str]:
    """KITTI's results: type, truncation and occlusion (-1: unknown), alpha, the box in the image,
    height, width, length, place in the camera's coordinates, rotation_y, score.
    """
    rows: list[str] = []
    each = zip(found.boxes.double().numpy(), found.labels, found.scores, strict=True)
    for box, label, score in each:
        numbers = camera_numbers(box, sweep.calib)
        alpha = _wrapped(numbers[6] - math.atan2(numbers[3], numbers[5]))
        values = [alpha, *outline(box, sweep.calib.to_image, sweep.size), *numbers]
        text = " ".join(f"{value:.2f}" for value in values)
        rows.append(f"{CLASSES[int(label)]} -1 -1 {text} {score.item():.4f}")
    return rows


def _wrapped(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def outline(box: Array, projection: Array, size: tuple[int, int]) -> list[float]:
    """Left, top, right, bottom in pixels, within the image; zeros for a box behind the camera."""
    pixels, depth = project(corners(box[None])[0], projection)
    seen = pixels[depth > NEAR].clip(0, np.array(size, dtype=np.float64))
    return [*seen.min(axis=0), *seen.max(axis=0)] if len(seen) else [0.0] * 4


def _draw(module: Placed, sweep: _Sweep, found: Found, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 8.4), layout="constrained")
    top, below = figure.subplots(2, 1, height_ratios=(1, 3))
    projection = sweep.calib.to_image
    backdrop(top, sweep.points, projection, sweep.image, sweep.size)
    found_in_image(top, found, projection)
    view_from_above(below, sweep.points, np.zeros((0, 7)), found, module.area)
    top.set_axis_off()
    below.set_xlabel("metres to the right")
    below.set_ylabel("metres ahead")
    legend(figure, truth=False)
    figure.savefig(file, dpi=110, metadata={"Software": None})
