"""Frames as their owners publish them: KITTI's folders, nuScenes' and Argoverse 2's sweeps.

Points come out as float32 [n, 4]: x, y, z in metres and a reflectance in 0..1. Boxes come out as in
`boxes`. Everything is checked as it is read; a message names the file, and for a label its line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillhouse.errors import BadData
from stillhouse_pointcloud.boxes import CLASSES

Array = NDArray[np.float64]
Points = NDArray[np.float32]

FIELDS = (15, 16)  # of a line of label_2: the sixteenth is a detector's score
FULL, REDUCED = "velodyne", "velodyne_reduced"  # whole scans; the part within the picture
SPLITS = ("train", "val")  # ImageSets/train.txt is for training, val.txt for testing
# what KITTI does not count for or against a class: neighbours that look alike
NEIGHBOURS = {"Van": "Car", "Person_sitting": "Pedestrian"}
TYPES = (*CLASSES, *NEIGHBOURS, "Truck", "Tram", "Misc", "DontCare")
MIN_HEIGHT = (40.0, 25.0, 25.0)  # pixels: easy, moderate, hard
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.3, 0.5)
IMAGE_SIZE = (1242, 375)  # of most of KITTI's pictures, where a frame has none


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


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The files of one frame."""

    name: str
    points: Path
    calib: Path
    label: Path
    image: Path  # need not exist


@dataclass(frozen=True, kw_only=True)
class Described:
    """All of a frame but its points, which are read when they are wanted."""

    name: str
    points: Path
    image: Path  # need not exist
    size: tuple[int, int]  # of the picture: width, height
    calib: Calibration
    labels: list[Label]


def described(frame: Frame) -> Described:
    """What the files of a frame say."""
    calib = read_calib(frame.calib)
    return Described(
        name=frame.name,
        points=frame.points,
        image=frame.image,
        size=image_size(frame),
        calib=calib,
        labels=read_labels(frame.label, calib),
    )


def difficulty(height: float, occlusion: int, truncation: float) -> int:
    """0 easy, 1 moderate, 2 hard, -1 none: of a 2D height in pixels, KITTI's occlusion (0 to 3) and
    truncation (0 to 1).
    """
    limits = zip(MIN_HEIGHT, MAX_OCCLUSION, MAX_TRUNCATION, strict=True)
    for level, (least, hidden, cut) in enumerate(limits):
        if height > least and occlusion <= hidden and truncation <= cut:
            return level
    return -1


def find_frames(source: Path) -> dict[str, list[Frame]]:
    """The frames of "train" and "val" in a KITTI folder, by its ImageSets; raises BadData where a
    list, or a file of a frame in it, is missing.
    """
    root, clouds = source / "training", cloud_folder(source)
    found: dict[str, list[Frame]] = {}
    for split in SPLITS:
        names = text(source / "ImageSets" / f"{split}.txt").split()
        if not names:
            raise BadData(f"{source / 'ImageSets' / f'{split}.txt'}: no frame in it; expected some")
        found[split] = [_frame(root, clouds, name) for name in names]
    return found


def cloud_folder(source: Path) -> Path:
    """Where the clouds of a KITTI folder are; BadData where it has none."""
    for name in (FULL, REDUCED):
        if (source / "training" / name).is_dir():
            return source / "training" / name
    raise BadData(f"{source}: no training/{FULL} or training/{REDUCED}; expected KITTI")


def _frame(root: Path, clouds: Path, name: str) -> Frame:
    frame = Frame(
        name=name,
        points=clouds / f"{name}.bin",
        calib=root / "calib" / f"{name}.txt",
        label=root / "label_2" / f"{name}.txt",
        image=root / "image_2" / f"{name}.png",
    )
    for what in ("points", "calib", "label"):
        file: Path = getattr(frame, what)
        if not file.is_file():
            raise BadData(
                f"{file}: missing; frame {name} needs its {what}, or leave ImageSets' list"
            )
    return frame


def text(file: Path) -> str:
    """What a file says; BadData names it where it cannot be read."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise BadData(f"{file}: cannot be read as text ({reason}); replace it") from error


def checked(points: Points, where: str) -> Points:
    """The same points; BadData for none, or for one that is not finite."""
    if len(points) == 0:
        raise BadData(f"{where}: the cloud is empty; remove the frame or get it again")
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        row = int((~finite).argmax())
        raise BadData(
            f"{where}: point {row} of {len(points)} is not finite {points[row].tolist()}; "
            "remove such points"
        )
    return points


def read_bin(file: Path, *, floats: int = 4) -> Points:
    """Points [n, 4] of a file of float32 x, y, z, reflectance (KITTI), or with `floats` = 5 of
    nuScenes' .pcd.bin, whose intensity is 0..255 and whose last number is the beam.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise BadData(f"{file}: cannot be read ({error.strerror}); replace it") from error
    stride = 4 * floats
    if len(raw) % stride:
        raise BadData(
            f"{file}: {len(raw)} bytes are no multiple of {stride}, {floats} float32 a point; "
            "is its point stride another?"
        )
    points = np.frombuffer(raw, dtype="<f4").reshape(-1, floats)[:, :4].astype(np.float32)
    if floats == 5:
        points[:, 3] /= 255
    return checked(points, str(file))


def read_argoverse(file: Path) -> Points:
    """Points [n, 4] of an Argoverse 2 sweep (.feather with x, y, z, intensity 0..255).

    They are in the vehicle's coordinates: x front, y left, z up, from the middle of the rear axle,
    0.3 m or so above the road. A detector of KITTI's coordinates wants z lowered (see `lower`).
    """
    import pyarrow as pa
    import pyarrow.feather as feather

    names = ("x", "y", "z", "intensity")
    try:
        table = feather.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise BadData(f"{file}: cannot be read as feather ({reason}); replace it") from error
    if missing := [name for name in names if name not in table.column_names]:
        raise BadData(f"{file}: no column {missing[0]}; expected x, y, z, intensity")
    columns = [table.column(name).to_numpy().astype(np.float32) for name in names]
    points = np.stack(columns, axis=1)
    points[:, 3] /= 255
    return checked(points, str(file))


def read_sweep(file: Path) -> Points:
    """Points [n, 4] of one file by its name: .feather (Argoverse 2), .pcd.bin (nuScenes), .bin."""
    if file.suffix == ".feather":
        return read_argoverse(file)
    if file.suffix != ".bin":
        raise BadData(f"{file}: not a known cloud; expected .bin, .pcd.bin or .feather")
    return read_bin(file, floats=5 if file.name.endswith(".pcd.bin") else 4)


def lower(points: Points, by: float) -> Points:
    """The points moved down by `by` metres: to a sensor that is higher by as much."""
    moved = points.copy()
    moved[:, 2] -= by
    return moved


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
    return Calibration(**found)


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
    if not none and not (box[3:6] > 0).all():
        raise BadData(f"{where}: sizes {list(n[7:10])} are not all > 0; correct it")
    return Label(
        type=kind,
        truncation=n[0],
        occlusion=int(n[1]),
        box_2d=(n[3], n[4], n[5], n[6]),
        alpha=n[2],
        camera=np.array(n[7:14]),
        box=box,
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


def image_size(frame: Frame) -> tuple[int, int]:
    """Width and height of the frame's picture; KITTI's usual size where there is none."""
    if not frame.image.is_file():
        return IMAGE_SIZE
    try:
        with Image.open(frame.image) as picture:
            return picture.size
    except (OSError, SyntaxError) as error:
        raise BadData(f"{frame.image}: not a picture ({error}); replace it") from error


def read_picture(file: Path | BytesIO, where: str) -> Image.Image:
    """The picture in RGB; BadData where it is none."""
    try:
        with Image.open(file) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise BadData(f"{where}: not a picture ({error}); replace it or remove it") from error
