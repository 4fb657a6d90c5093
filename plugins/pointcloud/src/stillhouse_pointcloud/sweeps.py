"""Clouds as their owners publish them: KITTI's and nuScenes' .bin, Argoverse 2's .feather.

Points come out as float32 [n, 4]: x, y, z in metres and a reflectance in 0..1. Everything is
checked as it is read; a message names the file and what would do.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import BadData

Points = NDArray[np.float32]

BYTES = 255  # the largest intensity of a sensor that sends it as a byte
OTHERS = (".pcd", ".ply", ".las", ".laz", ".npy")  # clouds that are not read
LAYOUT = "float32 x, y, z, reflectance (0..1)"


def checked(points: Points, where: str) -> Points:
    """The same points; BadData for none, for one that is not finite, and for a reflectance outside
    0..1.
    """
    if len(points) == 0:
        raise BadData(f"{where}: the cloud is empty; remove the frame or get it again")
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        row = int((~finite).argmax())
        raise BadData(
            f"{where}: point {row} of {len(points)} is not finite {points[row].tolist()}; "
            "remove such points"
        )
    reflectance = points[:, 3]
    outside = (reflectance < 0) | (reflectance > 1)
    if outside.any():
        row = int(outside.argmax())
        raise BadData(
            f"{where}: the reflectance of point {row} of {len(points)} is {reflectance[row]:g}, "
            f"outside 0..1; {_advice(reflectance)}"
        )
    return points


def _advice(reflectance: NDArray[np.float32]) -> str:
    if reflectance.min() >= 0 and reflectance.max() <= BYTES:
        return f"divide the fourth column by {BYTES}, the largest intensity of a byte"
    return f"save {LAYOUT} and nothing else of each point"


def read_bin(file: Path, *, floats: int = 4) -> Points:
    """Points [n, 4] of a file of float32 x, y, z, reflectance (KITTI), or with `floats` = 5 of
    nuScenes' .pcd.bin, whose intensity is 0..255 and whose last number is the beam.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise BadData(f"{file}: cannot be read ({error.strerror}); replace it") from error
    if floats == 4 and _is_five(raw):
        raise BadData(
            f"{file}: it holds five numbers a point ({len(raw) // 20} points), not {LAYOUT}; keep "
            "four of them: points = numpy.fromfile(file, 'float32').reshape(-1, 5)[:, :4], the "
            "fourth brought to 0..1"
        )
    stride = 4 * floats
    if len(raw) % stride:
        raise BadData(
            f"{file}: {len(raw)} bytes are no multiple of {stride}, {floats} float32 a point; "
            "is it cut short, or has a point more numbers?"
        )
    points = np.frombuffer(raw, dtype="<f4").reshape(-1, floats)[:, :4].astype(np.float32)
    if floats == 5:
        points[:, 3] /= BYTES
    return checked(points, str(file))


def _is_five(raw: bytes) -> bool:
    """Whether the bytes are no points of four numbers, but points of five: x, y, z, an intensity
    and a ring or time.
    """
    if not raw or len(raw) % 20:
        return False
    five = np.frombuffer(raw, dtype="<f4").reshape(-1, 5)
    if not np.isfinite(five).all() or five[:, 3:].min() < 0 or five[:, 3].max() > BYTES:
        return False
    if len(raw) % 16:
        return True
    reflectance = np.frombuffer(raw, dtype="<f4").reshape(-1, 4)[:, 3]
    return bool(((reflectance < 0) | (reflectance > 1)).any())


def missing_cloud(file: Path) -> str:
    """What would do where the .bin of a frame is missing."""
    for suffix in OTHERS:
        if (other := file.with_suffix(suffix)).is_file():
            return (
                f"there is {other.name}: convert it to {LAYOUT}, as "
                "points.astype('float32').tofile(file) of numpy writes it"
            )
    return f"frame {file.stem} needs its points, or leave ImageSets' list"


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
    points[:, 3] /= BYTES
    return checked(points, str(file))


def read_sweep(file: Path) -> Points:
    """Points [n, 4] of one file by its name: .feather (Argoverse 2), .pcd.bin (nuScenes), .bin."""
    if file.suffix == ".feather":
        return read_argoverse(file)
    if file.suffix != ".bin":
        raise BadData(
            f"{file}: not a known cloud; expected .bin ({LAYOUT}), .pcd.bin (nuScenes) or .feather "
            "(Argoverse 2)"
        )
    return read_bin(file, floats=5 if file.name.endswith(".pcd.bin") else 4)


def lower(points: Points, by: float) -> Points:
    """The points moved down by `by` metres: to a sensor that is higher by as much."""
    moved = points.copy()
    moved[:, 2] -= by
    return moved
