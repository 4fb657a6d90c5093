"""KITTI's calibrations and labels.

Boxes come out as in `boxes`. Everything is checked as it is read; a message names the file, and for
a label its line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import BadData
from stillhouse_pointcloud.boxes import CLASSES

Array = NDArray[np.float64]

FIELDS = (15, 16)  # of a line of label_2: the sixteenth is a detector's score
# what KITTI does not count for or against a class: neighbours that look alike
NEIGHBOURS = {"Van": "Car", "Person_sitting": "Pedestrian"}
TYPES = (*CLASSES, *NEIGHBOURS, "Truck", "Tram", "Misc", "DontCare")
MIN_HEIGHT = (40.0, 25.0, 25.0)  # pixels: easy, moderate, hard
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.3, 0.5)
OCCLUSIONS = (-1, 0, 1, 2, 3)  # -1: unknown, as in a detector's results
ROTATION = 1e-2  # how far R R^T of a rotation may be from 1
IMAGE_SIZE = (1242, 375)  # of most of KITTI's images, in pixels


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a frame's LiDAR and its left colour camera are placed: KITTI's P2, R0_rect and
    Tr_velo_to_cam.
    """

    p2: Array  # [3, 4]
    r0_rect: Array  # [3, 3]
    tr_velo_to_cam: Array  # [3, 4]

    @property
    def to_camera(self) -> Array:
        """[4, 4]: LiDAR to the rectified camera, in metres."""
        rectify, move = np.eye(4), np.eye(4)
        rectify[:3, :3], move[:3] = self.r0_rect, self.tr_velo_to_cam
        return rectify @ move

    @property
    def to_image(self) -> Array:
        """[3, 4]: LiDAR to pixels, times the depth."""
        return self.p2 @ self.to_camera


@dataclass(frozen=True, kw_only=True)
class Label:
    """One line of label_2. `box` is in LiDAR coordinates; a DontCare has none (NaN)."""

    type: str
    truncation: float
    occlusion: int
    box_2d: tuple[float, float, float, float]  # left, top, right, bottom in pixels
    alpha: float  # radians: the heading as the camera sees it
    camera: Array  # [7] as the line has it: height, width, length, x, y, z, rotation_y
    box: Array  # [7]

    @property
    def difficulty(self) -> int:
        """KITTI's: 0 easy, 1 moderate, 2 hard, the first whose limits it keeps; -1 for none."""
        return difficulty(self.box_2d[3] - self.box_2d[1], self.occlusion, self.truncation)


def difficulty(height: float, occlusion: int, truncation: float) -> int:
    """0 easy, 1 moderate, 2 hard, -1 none: of a 2D height in pixels, KITTI's occlusion (0 to 3) and
    truncation (0 to 1).
    """
    limits = zip(MIN_HEIGHT, MAX_OCCLUSION, MAX_TRUNCATION, strict=True)
    for level, (least, hidden, cut) in enumerate(limits):
        if height > least and occlusion <= hidden and truncation <= cut:
            return level
    return -1


def text(file: Path) -> str:
    """What a file holds; BadData names it where it cannot be read."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadData(f"{file}: cannot be read as text ({reason}); replace it") from error


def read_calib(file: Path) -> Calibration:
    """KITTI's calibration of a frame; BadData where a matrix is missing or has another size."""
    parted = (line.partition(":") for line in text(file).splitlines())
    rows = {name: rest for name, colon, rest in parted if colon}
    shapes = {"P2": (3, 4), "R0_rect": (3, 3), "Tr_velo_to_cam": (3, 4)}
    found: dict[str, Array] = {}
    for name, shape in shapes.items():
        if name not in rows:
            raise BadData(f"{file}: no {name}; expected P2, R0_rect and Tr_velo_to_cam")
        numbers = _numbers(f"{file}: {name}", rows[name].split(), math.prod(shape))
        found[name.lower()] = np.array(numbers).reshape(shape)
    calib = Calibration(**found)
    check_rotations(str(file), calib)
    return calib


def check_rotations(where: str, calib: Calibration) -> None:
    """Raises BadData for an R0_rect or Tr_velo_to_cam that is no rotation, or a P2 without a focal
    length.
    """
    for name in ("R0_rect", "Tr_velo_to_cam"):
        turn = getattr(calib, name.lower())[:, :3]
        if np.abs(turn @ turn.T - np.eye(3)).max() > ROTATION:
            raise BadData(
                f"{where}: the first three columns of {name} are no rotation "
                f"({_shown(turn[0])} is its first row); correct it"
            )
    if not (calib.p2[0, 0] > 0 and calib.p2[1, 1] > 0):
        raise BadData(
            f"{where}: P2 has the focal lengths {_shown(calib.p2[[0, 1], [0, 1]])}, which must be "
            "> 0 pixels; correct it"
        )


def _shown(numbers: Array) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def read_labels(file: Path, calib: Calibration) -> list[Label]:
    """The labels of a frame, in the file's order."""
    lines = enumerate(text(file).splitlines(), 1)
    return [_label(f"{file}: line {i}", line.split(), calib) for i, line in lines if line.strip()]


def _label(where: str, words: Sequence[str], calib: Calibration) -> Label:
    if len(words) not in FIELDS:
        raise BadData(f"{where}: {len(words)} fields; expected {FIELDS[0]}: type and 14 numbers")
    if words[0] not in TYPES:
        raise BadData(f"{where}: type '{words[0]}'; expected one of {', '.join(TYPES)}")
    return label(where, words[0], _numbers(where, words[1:15], 14), calib)


def label(where: str, kind: str, n: Sequence[float], calib: Calibration) -> Label:
    """A label of its type and its 14 numbers, in the order of KITTI's lines."""
    none = kind == "DontCare"
    box = np.full(7, np.nan) if none else camera_box(np.array(n[7:14]), calib)
    if not none:
        _check_label(where, n, box)
    return Label(
        type=kind,
        truncation=n[0],
        occlusion=int(n[1]),
        box_2d=(n[3], n[4], n[5], n[6]),
        alpha=n[2],
        camera=np.array(n[7:14]),
        box=box,
    )


def _check_label(where: str, n: Sequence[float], box: Array) -> None:
    if not (box[3:6] > 0).all():
        raise BadData(f"{where}: sizes {list(n[7:10])} are not all > 0; correct it")
    if n[1] not in OCCLUSIONS or not -1 <= n[0] <= 1:
        raise BadData(
            f"{where}: truncation {n[0]:g} and occlusion {n[1]:g}; expected 0 to 1, and 0, 1, 2 or "
            "3 (-1: unknown)"
        )
    if not n[6] > n[4]:
        raise BadData(
            f"{where}: its 2D box ({_shown(np.array(n[3:7]))}: left, top, right, bottom) has no "
            "height, by which KITTI says what counts; write its outline in the image, in pixels, "
            "or leave the line out where the camera does not see it"
        )


def camera_box(numbers: Array, calib: Calibration) -> Array:
    """KITTI's height, width, length, x, y, z, rotation_y (the middle of the bottom, rectified
    camera) as a box [7] in LiDAR coordinates; yaw in [-pi, pi).
    """
    high, wide, long, x, y, z, turn = numbers
    centre = np.linalg.inv(calib.to_camera) @ np.array([x, y - high / 2, z, 1.0])
    # rotation_y is counted clockwise from the camera's x, which is the LiDAR's -y
    yaw = (-turn - math.pi / 2 + math.pi) % (2 * math.pi) - math.pi
    return np.array([*centre[:3], long, wide, high, yaw])


def camera_numbers(box: Array, calib: Calibration) -> list[float]:
    """A box [7] as KITTI writes it: the inverse of `camera_box`; rotation_y in [-pi, pi)."""
    at = calib.to_camera @ np.array([*box[:3], 1.0])
    long, wide, high, yaw = box[3:7].tolist()
    turn = (-yaw - math.pi / 2 + math.pi) % (2 * math.pi) - math.pi
    return [high, wide, long, float(at[0]), float(at[1]) + high / 2, float(at[2]), turn]


def _numbers(where: str, words: Sequence[str], count: int) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        shown = " ".join(words)
        raise BadData(f"{where}: '{shown[:60]}' is not {count} finite numbers; correct it")
    return numbers
