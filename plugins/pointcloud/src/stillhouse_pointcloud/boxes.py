"""Boxes in a LiDAR's coordinates: corners, projection to an image, other conventions.

A box is (x, y, z, dx, dy, dz, yaw) in metres and radians: x to the front, y to the left, z up;
x, y, z its geometric centre; dx its length along the heading, dy its width, dz its height; yaw
counted counter-clockwise from +x, seen from above. Axes, sizes and yaw are those of mmdet3d 1.x
(`LiDARInstance3DBoxes`), whose tensors have z at the bottom instead: see `to_bottom`.
"""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]  # boxes [M, 7], matrices, pixels

CLASSES = ("Car", "Pedestrian", "Cyclist")
# the corners of a box of side 1: four of the bottom, counter-clockwise, then those above them
UNIT = np.array(
    [
        [x, y, z]
        for z in (-0.5, 0.5)
        for x, y in ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))
    ]
)
EDGES = tuple(
    edge for i in range(4) for edge in ((i, (i + 1) % 4), (4 + i, 4 + (i + 1) % 4), (i, 4 + i))
)
NEAR = 0.1  # metres before the camera at which a box that reaches behind it is cut


def to_bottom(boxes: Array) -> Array:
    """The boxes as mmdet3d 1.x holds them: z at the bottom."""
    moved = boxes.copy()
    moved[:, 2] -= boxes[:, 5] / 2
    return moved


def from_bottom(boxes: Array) -> Array:
    """Boxes whose z is at the bottom (mmdet3d 1.x) as they are here."""
    moved = boxes.copy()
    moved[:, 2] += boxes[:, 5] / 2
    return moved


def corners(boxes: Array) -> Array:
    """The eight corners [M, 8, 3], in the order of `UNIT`."""
    local = boxes[:, None, 3:6] * UNIT
    cos, sin = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y, local[..., 2]], axis=2) + boxes[:, None, :3]


def inside(points: Array, box: Array) -> NDArray[np.bool_]:
    """Which points [n, >= 3] are in the box [7], its surface included."""
    moved = points[:, :3] - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    x, y = moved[:, 0] * cos + moved[:, 1] * sin, moved[:, 1] * cos - moved[:, 0] * sin
    local = np.abs(np.stack([x, y, moved[:, 2]], axis=1))
    return np.all(local <= box[3:6] / 2 + 1e-6, axis=1).astype(np.bool_)


def project(points: Array, projection: Array) -> tuple[Array, Array]:
    """Pixels [..., 2] and depths [...] of points [..., 3] by `projection` [3, 4], LiDAR to image;
    pixels mean something where the depth is positive.
    """
    seen = points[..., :3] @ projection[:, :3].T + projection[:, 3]
    depth = seen[..., 2]
    safe = np.where(np.abs(depth) < 1e-9, 1e-9, depth)
    return seen[..., :2] / safe[..., None], depth


def in_view(points: Array, projection: Array, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which points [n, >= 3] are within an image of `size` (width, height)."""
    pixels, depth = project(points, projection)
    return (depth > 0) & (pixels >= 0).all(axis=1) & (pixels < np.array(size)).all(axis=1)


def image_heights(boxes: Array, projection: Array, height: float = np.inf) -> Array:
    """The heights [M], in pixels, of the boxes' outlines in an image that is `height` high; 0
    where a box is behind the camera.
    """
    at = corners(boxes)
    pixels, depth = project(at, projection)
    before = depth > NEAR
    y = np.where(before, pixels[..., 1], np.nan)
    found = np.zeros(len(boxes))
    some = before.any(axis=1)
    if some.any():
        y = y[some].clip(0, height)
        found[some] = np.nanmax(y, axis=1) - np.nanmin(y, axis=1)
    return found
