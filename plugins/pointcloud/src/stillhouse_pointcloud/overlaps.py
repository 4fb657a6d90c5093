"""How much boxes share, from above and in space, exactly and for any heading.

M, N: boxes, as in `boxes`. R: pairs of them. V: corners of a polygon.
"""

import numpy as np
from jaxtyping import Bool, Float, Integer
from numpy import ndarray
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bev_areas(a: Float[ndarray, "M 7"], b: Float[ndarray, "N 7"]) -> Float[ndarray, "M N"]:
    """The area two boxes share seen from above, in square metres; pairs too far apart to touch are
    not computed.
    """
    found = np.zeros((len(a), len(b)))
    reach = np.hypot(a[:, 3], a[:, 4])[:, None] / 2 + np.hypot(b[:, 3], b[:, 4]) / 2
    apart = np.hypot(a[:, None, 0] - b[:, 0], a[:, None, 1] - b[:, 1])
    rows, columns = np.nonzero(apart < reach)
    if len(rows):
        found[rows, columns] = shared_areas(a[rows], b[columns])
    return found


def bev_iou(a: Float[ndarray, "M 7"], b: Float[ndarray, "N 7"]) -> Float[ndarray, "M N"]:
    """Intersection over union of the rectangles seen from above."""
    inner = bev_areas(a, b)
    return _ratio(inner, a[:, 3] * a[:, 4], b[:, 3] * b[:, 4])


def iou_3d(a: Float[ndarray, "M 7"], b: Float[ndarray, "N 7"]) -> Float[ndarray, "M N"]:
    """Intersection over union of the volumes; boxes stand upright."""
    top = np.minimum((a[:, 2] + a[:, 5] / 2)[:, None], b[:, 2] + b[:, 5] / 2)
    bottom = np.maximum((a[:, 2] - a[:, 5] / 2)[:, None], b[:, 2] - b[:, 5] / 2)
    inner = bev_areas(a, b) * (top - bottom).clip(0)
    return _ratio(inner, a[:, 3:6].prod(axis=1), b[:, 3:6].prod(axis=1))


def _ratio(inner: Array, a: Array, b: Array) -> Array:
    return inner / np.maximum(a[:, None] + b - inner, 1e-12)


def shared_areas(a: Float[ndarray, "R 7"], b: Float[ndarray, "R 7"]) -> Float[ndarray, " R"]:
    """The area that the boxes of each pair share: a's rectangle in b's own axes, cut by b's four
    sides in turn (Sutherland and Hodgman 1974), by the shoelace formula.
    """
    cos, sin = np.cos(b[:, 6]), np.sin(b[:, 6])
    moved = a[:, :2] - b[:, :2]
    x, y = moved[:, 0] * cos + moved[:, 1] * sin, moved[:, 1] * cos - moved[:, 0] * sin
    turn = a[:, 6] - b[:, 6]
    long = np.stack([np.cos(turn), np.sin(turn)], axis=1) * a[:, 3:4] / 2
    wide = np.stack([-np.sin(turn), np.cos(turn)], axis=1) * a[:, 4:5] / 2
    corners = np.stack([long + wide, wide - long, -long - wide, long - wide], axis=1)
    polygon = corners + np.stack([x, y], axis=1)[:, None]
    for axis in (0, 1):
        for sign in (1.0, -1.0):
            polygon = _cut(polygon, b[:, 3 + axis, None] / 2 - sign * polygon[..., axis])
    x, y = polygon[..., 0], polygon[..., 1]
    area = (x * np.roll(y, -1, axis=1) - y * np.roll(x, -1, axis=1)).sum(axis=1) / 2
    return area.clip(0)


def _cut(polygon: Float[ndarray, "R V 2"], depth: Float[ndarray, "R V"]) -> Array:
    """The part of convex polygons where `depth`, linear in place, is >= 0: [R, V + 2, 2], corners
    in order, the last repeated; all zeros where nothing is left.
    """
    follows, deeper = np.roll(polygon, -1, axis=1), np.roll(depth, -1, axis=1)
    kept: Bool[ndarray, "R V"] = depth >= 0
    crossed = kept != (deeper >= 0)
    gap = np.where(crossed, depth - deeper, 1.0)
    crossing = polygon + (depth / gap)[..., None] * (follows - polygon)
    # of each side its first corner, if it is kept, then where it crosses
    places = np.stack([polygon, crossing], axis=2).reshape(len(polygon), -1, 2)
    valid = np.stack([kept, crossed], axis=2).reshape(len(polygon), -1)
    order: Integer[ndarray, "R V"] = np.argsort(~valid, axis=1, kind="stable")
    counts = valid.sum(axis=1)
    # a line cuts a convex polygon twice, adding one corner; rounding along a side can add another
    most = polygon.shape[1] + 2
    last = np.minimum(np.arange(most), np.maximum(counts - 1, 0)[:, None])
    picked = np.take_along_axis(order, last, axis=1)
    found = np.take_along_axis(places, picked[..., None], axis=1)
    return np.where((counts > 0)[:, None, None], found, 0.0)
