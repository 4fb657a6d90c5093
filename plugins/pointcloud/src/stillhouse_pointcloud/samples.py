"""Built-in data: street scenes seen by a turning LiDAR, ray by ray, the same on every machine.

A scene is a road with cars, pedestrians and cyclists between walls, poles and bushes. Each is built
of boxes and upright cylinders; a ray's point is the nearest thing it hits, so that what stands
behind something is hidden as it would be. Distances are noisy, some returns are lost, and what
comes back is weaker from dark and from slanted surfaces.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stillhouse_pointcloud.boxes import CLASSES, corners, image_heights, in_view, project
from stillhouse_pointcloud.formats import IMAGE_SIZE, difficulty
from stillhouse_pointcloud.raycast import Grid, Part, cast, grid

Array = NDArray[np.float64]

TRAIN, TEST, SEED = 48, 24, 64
HEIGHT = 1.73  # of the sensor above the road, metres: KITTI's
ROAD = 0.25  # reflectance
# KITTI's mean sizes (length, width, height) and how far they vary, as a fraction
SIZES = ((3.9, 1.6, 1.56), (0.8, 0.6, 1.73), (1.76, 0.6, 1.73))
VARIES = 0.08
HIDDEN = (0.15, 0.5, 0.8)  # the hidden part up to which an object's occlusion is 0, 1 or 2
GAP = 0.5  # metres kept free between things
# the camera of a drawn scene, as KITTI's: LiDAR x, y, z to pixels times depth
FOCAL, MIDDLE = 721.5, (609.6, 172.9)
PROJECTION = np.array(
    [[MIDDLE[0], -FOCAL, 0, 0], [MIDDLE[1], 0, -FOCAL, 0], [1.0, 0, 0, 0]], dtype=np.float64
)


@dataclass(frozen=True, kw_only=True)
class Lidar:
    """A sensor: `beams` evenly from `top` to `bottom` degrees above the horizon (those of the
    HDL-64 that KITTI has), a ray each `step` degrees within +-`wide`; metres.
    """

    beams: int = 64
    top: float = 2.0
    bottom: float = -24.9
    step: float = 0.17
    wide: float = 41.0
    reach: float = 80.0
    noise: float = 0.02  # standard deviation of a distance
    lost: float = 0.05  # the part of the returns that never come


@dataclass(frozen=True, kw_only=True)
class Street:
    """What stands in a scene: how many of each class at most, and where: x from `near` to `far`."""

    cars: int = 8
    pedestrians: int = 5
    cyclists: int = 3
    clutter: int = 8
    near: float = 6.0
    far: float = 60.0
    half: float = 12.0  # from the road's middle to the walls, at least


SMALL_LIDAR = Lidar(beams=24, bottom=-16.0, step=0.7, reach=45.0)
SMALL_STREET = Street(cars=4, pedestrians=3, cyclists=2, clutter=3, far=28.0, half=9.0)


def scenes() -> Mapping[str, NDArray[Any]]:  # Any: floats and integers
    """`TRAIN` and `TEST` scenes of a small LiDAR: arrays "train_points" [total, 4] with
    "train_points_offsets" [N + 1], and so on, that `data.ReadKitti` reads.
    """
    return dict(_scenes())


@functools.cache
def _scenes() -> Mapping[str, NDArray[Any]]:
    made: dict[str, NDArray[Any]] = {}
    for split, count, seed in (("train", TRAIN, SEED), ("test", TEST, SEED + 1)):
        arrays = render(count, seed=seed, lidar=SMALL_LIDAR, street=SMALL_STREET)
        made |= {f"{split}_{name}": array for name, array in arrays.items()}
    return made


def render(
    count: int, *, seed: int, lidar: Lidar | None = None, street: Street | None = None
) -> dict[str, NDArray[Any]]:  # Any: floats and integers
    """`count` scenes as arrays: points float32 [total, 4] (x, y, z, reflectance 0..1), boxes
    float32 [total, 7], labels, difficulty int64 [total], ignored and ignored_labels (none), each
    with "<name>_offsets" [count + 1], projection [count, 3, 4] and image_size [count, 2].

    Scene i depends on `seed` and i alone. Points are those in the camera's image. An object
    without a point has no box. Its difficulty follows KITTI's limits by its height in the image,
    its part beyond the image's edge and the part of its rays that something else takes. A scene
    took 0.013 s at 64 beams, 0.0023 s at those of `scenes` (one core, one run).
    """
    lidar, street = lidar or Lidar(), street or Street()
    rays = grid(lidar.top, lidar.bottom, lidar.beams, lidar.wide, lidar.step)
    drawn = [scene(np.random.default_rng([seed, i]), rays, lidar, street) for i in range(count)]
    made: dict[str, NDArray[Any]] = {}
    for name in drawn[0]:
        parts = [one[name] for one in drawn]
        made[name] = np.concatenate(parts)
        made[f"{name}_offsets"] = np.cumsum([0, *map(len, parts)])
    made["projection"] = np.repeat(PROJECTION[None].astype(np.float32), count, axis=0)
    made["image_size"] = np.repeat(np.array(IMAGE_SIZE)[None], count, axis=0)
    return made


def scene(
    rng: np.random.Generator, rays: Grid, lidar: Lidar, street: Street
) -> dict[str, NDArray[Any]]:  # Any: floats and integers
    """One scene's ragged columns."""
    boxes, labels = placed(rng, street)
    parts = [
        part
        for i, (box, label) in enumerate(zip(boxes, labels, strict=True))
        for part in built(box, int(label), rng, owner=i)
    ]
    parts += scenery(rng, boxes, street)
    hits = cast(rays, parts, ground=-HEIGHT, ground_shade=ROAD, owners=len(boxes))
    seen = (hits.distance < lidar.reach) & (rng.random(hits.distance.shape) >= lidar.lost)
    noisy = hits.distance + rng.normal(0, lidar.noise, hits.distance.shape)
    at = rays.directions * noisy[..., None]
    shade = hits.shade * (0.3 + 0.7 * hits.cosine) + rng.normal(0, 0.02, hits.shade.shape)
    points = np.concatenate([at, shade.clip(0, 1)[..., None]], axis=2)
    seen[seen] = in_view(points[seen], PROJECTION, IMAGE_SIZE)
    left = np.bincount(hits.owner[seen & (hits.owner >= 0)], minlength=len(boxes))
    hidden = 1 - hits.nearest / np.maximum(hits.alone, 1)
    kept = left > 0
    none = np.zeros(0, dtype=np.int64)
    return {
        "points": points[seen].astype(np.float32),
        "boxes": boxes[kept].astype(np.float32),
        "labels": labels[kept],
        "difficulty": difficulties(boxes[kept], hidden[kept]),
        "ignored": np.zeros((0, 7), dtype=np.float32),
        "ignored_labels": none,
    }


def difficulties(boxes: Array, hidden: Array) -> NDArray[np.int64]:
    """KITTI's difficulty of boxes [M, 7] of which the parts `hidden` [M] are."""
    heights = image_heights(boxes, PROJECTION, IMAGE_SIZE[1])
    occlusions = np.searchsorted(HIDDEN, hidden)
    pixels, depth = project(corners(boxes), PROJECTION)
    x = np.where(depth > 0, pixels[..., 0], np.nan)
    whole = np.nanmax(x, axis=1) - np.nanmin(x, axis=1) if len(boxes) else np.zeros(0)
    cut = x.clip(0, IMAGE_SIZE[0])
    inner = np.nanmax(cut, axis=1) - np.nanmin(cut, axis=1) if len(boxes) else np.zeros(0)
    rows = zip(heights, occlusions, 1 - inner / np.maximum(whole, 1e-9), strict=True)
    return np.array([difficulty(h, int(o), t) for h, o, t in rows], dtype=np.int64)


def placed(rng: np.random.Generator, street: Street) -> tuple[Array, NDArray[np.int64]]:
    """Boxes [M, 7] on the road and their labels [M], none within `GAP` of another."""
    most = (street.cars, street.pedestrians, street.cyclists)
    wanted = [label for label, n in enumerate(most) for _ in range(int(rng.integers(0, n + 1)))]
    if not wanted:
        wanted = [0]  # a scene is about something
    boxes: list[Array] = []
    labels: list[int] = []
    for label in wanted:
        box = _drawn(rng, label, street)
        if _free(box[:2], math.hypot(box[3], box[4]) / 2, boxes):
            boxes.append(box)
            labels.append(label)
    return np.array(boxes).reshape(-1, 7), np.array(labels, dtype=np.int64)


def _drawn(rng: np.random.Generator, label: int, street: Street) -> Array:
    size = np.array(SIZES[label]) * (1 + VARIES * rng.standard_normal(3).clip(-2, 2))
    x = rng.uniform(street.near, street.far)
    # cars along the road, in a few lanes; who walks or rides is also at its sides
    wide = min(street.half - 2.0, 0.75 * x)
    y = rng.uniform(-wide, wide)
    along = rng.choice([0.0, math.pi]) + rng.normal(0, 0.12)
    turn = rng.uniform(-math.pi, math.pi) if label == 1 or rng.random() < 0.25 else along
    yaw = (turn + math.pi) % (2 * math.pi) - math.pi
    return np.array([x, y, size[2] / 2 - HEIGHT, *size, yaw])


def _free(at: Array, radius: float, boxes: Sequence[Array]) -> bool:
    far = (math.hypot(*(at - b[:2])) - radius - math.hypot(b[3], b[4]) / 2 for b in boxes)
    return all(distance > GAP for distance in far)


def built(box: Array, label: int, rng: np.random.Generator, *, owner: int) -> list[Part]:
    """The parts of a thing that fill its box: a car of body, cabin and wheels, a person of legs,
    body and head, a cyclist of a frame, wheels and a person above.
    """
    shade = float(rng.uniform(0.15, 0.9))
    frame = _Frame(box=box, owner=owner, shade=shade)
    if CLASSES[label] == "Car":
        wheels = [
            frame.block((x, y, 0.0), (0.16, 0.14, 0.4), 0.05)
            for x in (-0.32, 0.32)
            for y in (-0.43, 0.43)
        ]
        body = frame.block((0, 0, 0.14), (1.0, 1.0, 0.46), shade)
        cabin = frame.block((-0.06, 0, 0.60), (0.55, 0.88, 0.40), 0.5 * shade)
        return [body, cabin, *wheels]
    if CLASSES[label] == "Pedestrian":
        stride = float(rng.uniform(0.1, 0.35))
        return [
            frame.post((-stride, -0.2, 0.0), 0.14, 0.48, 0.6 * shade),
            frame.post((stride, 0.2, 0.0), 0.14, 0.48, 0.6 * shade),
            frame.post((0, 0, 0.45), 0.36, 0.42, shade),
            frame.post((0, 0, 0.87), 0.18, 0.13, 0.4),
        ]
    return [
        frame.block((-0.31, 0, 0.0), (0.36, 0.12, 0.37), 0.1),
        frame.block((0.31, 0, 0.0), (0.36, 0.12, 0.37), 0.1),
        frame.block((0, 0, 0.25), (0.6, 0.15, 0.25), shade),
        frame.block((0.28, 0, 0.5), (0.05, 0.9, 0.08), 0.6),
        frame.post((-0.05, 0, 0.45), 0.38, 0.42, shade),
        frame.post((0, 0, 0.87), 0.19, 0.13, 0.4),
    ]


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """A box whose parts are given in fractions: x and y from its middle, z from its bottom."""

    box: Array
    owner: int
    shade: float

    def _at(self, place: tuple[float, float, float], high: float) -> Array:
        x, y = place[0] * self.box[3], place[1] * self.box[4]
        cos, sin = math.cos(self.box[6]), math.sin(self.box[6])
        z = self.box[2] + (place[2] + high / 2 - 0.5) * self.box[5]
        return np.array([self.box[0] + x * cos - y * sin, self.box[1] + x * sin + y * cos, z])

    def block(
        self, place: tuple[float, float, float], size: tuple[float, float, float], shade: float
    ) -> Part:
        return Part(
            kind="box",
            centre=self._at(place, size[2]),
            size=self.box[3:6] * np.array(size),
            yaw=float(self.box[6]),
            shade=shade,
            owner=self.owner,
        )

    def post(
        self, place: tuple[float, float, float], radius: float, high: float, shade: float
    ) -> Part:
        """An upright cylinder; `radius` as a fraction of the box's width."""
        wide = 2 * radius * self.box[4]
        return Part(
            kind="cylinder",
            centre=self._at(place, high),
            size=np.array([wide, wide, high * self.box[5]]),
            yaw=0.0,
            shade=shade,
            owner=self.owner,
        )


def scenery(rng: np.random.Generator, boxes: Array, street: Street) -> list[Part]:
    """Walls on both sides, and poles and bushes that are about as large as people."""
    parts = [_wall(rng, side, start, street) for side in (-1, 1) for start in (2.0, 22.0, 42.0)]
    for _ in range(int(rng.integers(0, street.clutter + 1))):
        wide, high = (0.25, 4.0) if rng.random() < 0.5 else rng.uniform((0.5, 0.5), (1.6, 1.5))
        x = rng.uniform(street.near, street.far)
        reach = min(street.half - 1.0, 0.75 * x)
        at = np.array([x, rng.uniform(-reach, reach)])
        if _free(at, wide / 2, list(boxes)):
            centre = np.array([*at, high / 2 - HEIGHT])
            size = np.array([wide, wide, high])
            shade = float(rng.uniform(0.1, 0.7))
            parts.append(
                Part(kind="cylinder", centre=centre, size=size, yaw=0.0, shade=shade, owner=-1)
            )
    return parts


def _wall(rng: np.random.Generator, side: int, start: float, street: Street) -> Part:
    long, thick, high = rng.uniform((12, 0.3, 1.5), (18, 4.0, 7.0))
    y = side * (street.half + thick / 2 + rng.uniform(0, 4))
    centre = np.array([start + long / 2, y, high / 2 - HEIGHT])
    size = np.array([long, thick, high])
    turn, shade = rng.normal(0, 0.02), float(rng.uniform(0.2, 0.7))
    return Part(kind="box", centre=centre, size=size, yaw=float(turn), shade=shade, owner=-1)
