"""Boxes in a LiDAR's cloud, by model.onnx of this folder, with numpy and onnxruntime alone.

    python detect.py cloud.bin     # float32 x, y, z, reflectance (0..1) a point, as KITTI

x is to the front, y to the left, z up, in metres from a sensor 1.73 m above the road. A box is x,
y, z of its middle, length, width, height, and yaw counter-clockwise from x. export.json holds the
classes, the grid of pillars, the anchors, and what is kept of what the network says.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]  # Any: of floats, integers or truth values
Record = Mapping[str, Any]  # Any: JSON values


def detect(folder: Path, points: Array) -> tuple[Array, Array, Array]:
    """Boxes [M, 7], scores [M] and class numbers [M] in a cloud [n, 4], the highest score first."""
    import onnxruntime

    use = json.loads((folder / "export.json").read_text())
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    seen = points[in_view(points, use["preprocessing"]["view"])]
    inputs = pillars(seen, use["preprocessing"]["grid"])
    maps: Any = session.run(["cls", "box", "dir"], inputs)  # Any: arrays
    return decoded(maps[0][0], maps[1][0], maps[2][0], use["decoding"])


def in_view(points: Array, view: Record) -> Array:
    """Which points a camera sees: the network was trained on these alone. `view` holds a projection
    [3, 4], x, y, z to pixels times depth, and the image's size (width, height).
    """
    projection = np.array(view["projection"])
    seen = points[:, :3].astype(np.float64) @ projection[:, :3].T + projection[:, 3]
    depth = seen[:, 2]
    pixels = seen[:, :2] / np.where(np.abs(depth) < 1e-9, 1e-9, depth)[:, None]
    return (depth > 0) & (pixels >= 0).all(axis=1) & (pixels < np.array(view["size"])).all(axis=1)


def pillars(points: Array, grid: Record) -> dict[str, Array]:
    """The network's inputs: the points of each cell of the grid seen from above.

    pillar_points float32 [P, most, 9]: x, y, z, reflectance; x, y, z from the pillar's mean; x, y
    from its middle; rows beyond a pillar's count are 0. pillar_counts int64 [P]. pillar_cells int64
    [P, 2]: row (y) and column (x). Of too many points in a pillar the first stay, of too many
    pillars the fullest.
    """
    (x0, x1), (y0, y1), (z0, z1), cell = grid["x"], grid["y"], grid["z"], grid["cell"]
    height, width = round((y1 - y0) / cell), round((x1 - x0) / cell)
    low, points = np.array([x0, y0], np.float32), points.astype(np.float32)
    place = np.floor((points[:, :2] - low) / np.float32(cell)).astype(np.int64)
    inside = (place >= 0).all(axis=1) & (place < [width, height]).all(axis=1)
    inside &= (points[:, 2] >= np.float32(z0)) & (points[:, 2] < np.float32(z1))
    points, place = points[inside], place[inside]
    key = place[:, 1] * width + place[:, 0]
    order = np.argsort(key, kind="stable")
    cells, starts, counts = np.unique(key[order], return_index=True, return_counts=True)
    kept = np.sort(np.argsort(-counts, kind="stable")[: grid["max_pillars"]])
    cells, starts, counts = cells[kept], starts[kept], np.minimum(counts[kept], grid["max_points"])
    at = np.stack([cells // width, cells % width], axis=1)
    middle = (at[:, ::-1].astype(np.float32) + np.float32(0.5)) * np.float32(cell) + low
    made = np.zeros((len(cells), grid["max_points"], 9), np.float32)
    for i, (start, count) in enumerate(zip(starts, counts, strict=True)):
        held = points[order[start : start + count]]
        mean = held[:, :3].mean(axis=0, dtype=np.float64).astype(np.float32)
        made[i, :count] = np.concatenate([held, held[:, :3] - mean, held[:, :2] - middle[i]], 1)
    return {"pillar_points": made, "pillar_counts": counts, "pillar_cells": at}


def decoded(cls: Array, box: Array, heading: Array, use: Record) -> tuple[Array, Array, Array]:
    """Boxes, scores and class numbers of the maps [channels, h, w] of one cloud."""
    at = anchors(use["anchors"], cls.shape[1:])
    sizes = use["anchors"]["sizes"]
    scores = 1 / (1 + np.exp(-_rows(cls, len(sizes))))
    found, halves = _rows(box, 7), _rows(heading, 2).argmax(axis=1)
    parts: list[tuple[Array, Array, Array]] = []
    for label in range(len(sizes)):
        rows = np.argsort(-scores[:, label], kind="stable")[: use["before"]]
        rows = rows[scores[rows, label] >= use["score"]]
        boxes = boxes_of(found[rows], halves[rows], at[rows])
        kept = suppressed(boxes.astype(np.float64), use["overlap"])
        parts.append((boxes[kept], scores[rows[kept], label], np.full(len(kept), label)))
    boxes, scores, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.argsort(-scores, kind="stable")[: use["most"]]
    return boxes[order], scores[order], labels[order]


def _rows(maps: Array, numbers: int) -> Array:
    """A map [channels, h, w] as rows of `numbers`, in the order of `anchors`."""
    return maps.transpose(1, 2, 0).reshape(-1, numbers)


def anchors(use: Record, shape: tuple[int, ...]) -> Array:
    """Boxes float32 [A, 7] at the middles of a map's cells (rows are y), one a class and heading,
    standing on the ground.
    """
    step, (x0, y0) = use["step"], use["origin"]
    kinds = [
        [use["ground"] + size[2] / 2, *size, heading]
        for size in use["sizes"]
        for heading in use["headings"]
    ]
    made = np.empty((*shape, len(kinds), 7), np.float32)
    made[..., 0] = (x0 + (np.arange(shape[1]) + 0.5) * step)[None, :, None]
    made[..., 1] = (y0 + (np.arange(shape[0]) + 0.5) * step)[:, None, None]
    made[..., 2:] = kinds
    return made.reshape(-1, 7)


def boxes_of(found: Array, halves: Array, at: Array) -> Array:
    """Boxes [M, 7] of differences from anchors: x, y over the anchor's diagonal, z over its height,
    logarithms of sizes, and the yaw up to a half turn, which `halves` decides (0: -45 to 135
    degrees).
    """
    diagonal = np.hypot(at[:, 3:4], at[:, 4:5])
    yaw = (found[:, 6:] + at[:, 6:] + np.pi / 4) % np.pi - np.pi / 4 + np.pi * halves[:, None]
    return np.concatenate(
        [
            found[:, :2] * diagonal + at[:, :2],
            found[:, 2:3] * at[:, 5:6] + at[:, 2:3],
            np.exp(found[:, 3:6].clip(-4, 4)) * at[:, 3:6],
            (yaw + np.pi) % (2 * np.pi) - np.pi,
        ],
        axis=1,
    )


def suppressed(boxes: Array, overlap: float) -> Array:
    """The rows that stay of boxes in falling order of score, when each takes away those after it
    that share more than `overlap` (IoU from above) with it.
    """
    over = bev_iou(boxes, boxes) > overlap
    gone = np.zeros(len(boxes), dtype=np.bool_)
    for row in range(len(boxes)):
        if not gone[row]:
            gone[row + 1 :] |= over[row, row + 1 :]
    return np.flatnonzero(~gone)


def bev_iou(a: Array, b: Array) -> Array:
    """Intersection over union [M, N] of the rectangles of boxes [M, 7] and [N, 7] from above."""
    inner = bev_areas(a, b)
    whole = (a[:, 3] * a[:, 4])[:, None] + b[:, 3] * b[:, 4] - inner
    return inner / np.maximum(whole, 1e-12)


def bev_areas(a: Array, b: Array) -> Array:
    """The areas [M, N] that boxes [M, 7] and [N, 7] share from above, in square metres; pairs too
    far apart to touch are not computed.
    """
    found = np.zeros((len(a), len(b)))
    reach = np.hypot(a[:, 3], a[:, 4])[:, None] / 2 + np.hypot(b[:, 3], b[:, 4]) / 2
    apart = np.hypot(a[:, None, 0] - b[:, 0], a[:, None, 1] - b[:, 1])
    rows, columns = np.nonzero(apart < reach)
    if len(rows):
        found[rows, columns] = shared_areas(a[rows], b[columns])
    return found


def shared_areas(a: Array, b: Array) -> Array:
    """The area [R] that the boxes [R, 7] of each pair share: a's rectangle in b's own axes, cut by
    b's four sides in turn (Sutherland and Hodgman 1974), by the shoelace formula.
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


def _cut(polygon: Array, depth: Array) -> Array:
    """The part of convex polygons [R, V, 2] where `depth` [R, V], linear in place, is >= 0:
    [R, V + 2, 2], corners in order, the last repeated; all zeros where nothing is left.
    """
    follows, deeper = np.roll(polygon, -1, axis=1), np.roll(depth, -1, axis=1)
    kept = depth >= 0
    crossed = kept != (deeper >= 0)
    gap = np.where(crossed, depth - deeper, 1.0)
    crossing = polygon + (depth / gap)[..., None] * (follows - polygon)
    # of each side its first corner, if it is kept, then where it crosses
    places = np.stack([polygon, crossing], axis=2).reshape(len(polygon), -1, 2)
    valid = np.stack([kept, crossed], axis=2).reshape(len(polygon), -1)
    order = np.argsort(~valid, axis=1, kind="stable")
    counts = valid.sum(axis=1)
    # a line cuts a convex polygon twice, adding one corner; rounding along a side can add another
    most = polygon.shape[1] + 2
    last = np.minimum(np.arange(most), np.maximum(counts - 1, 0)[:, None])
    picked = np.take_along_axis(order, last, axis=1)
    found = np.take_along_axis(places, picked[..., None], axis=1)
    return np.where((counts > 0)[:, None, None], found, 0.0)


def main() -> None:
    """The boxes in a .bin, a line each."""
    folder, file = Path(__file__).parent, Path(sys.argv[1])
    classes = json.loads((folder / "export.json").read_text())["classes"]
    points = np.fromfile(file, "<f4").reshape(-1, 4)
    for box, score, label in zip(*detect(folder, points), strict=True):
        print(classes[label], f"{score:.4f}", *(f"{number:.3f}" for number in box))


if __name__ == "__main__":
    main()
