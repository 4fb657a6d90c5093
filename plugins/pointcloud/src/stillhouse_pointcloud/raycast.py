"""Rays from the origin against boxes, upright cylinders and the ground: what each hits first."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NOWHERE = np.inf
FLAT = 1e-12  # a direction's part below this is parallel


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rays of a turning sensor: directions [beams, turns, 3] of length 1; azimuths [turns] rise."""

    directions: Array
    azimuths: Array


@dataclass(frozen=True, kw_only=True)
class Part:
    """A box, or an upright cylinder whose diameter is size[0]; `owner` is the object it is of, -1
    for none.
    """

    kind: Literal["box", "cylinder"]
    centre: Array  # [3]
    size: Array  # [3]
    yaw: float
    shade: float  # reflectance, 0..1
    owner: int


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What each ray of [beams, turns] hits first; the distance is infinite where nothing is.

    `nearest` and `alone` [owners] count an object's rays, and those that it would have alone.
    """

    distance: Array
    cosine: Array  # of the angle between the ray and the surface's normal
    shade: Array
    owner: NDArray[np.int64]
    nearest: NDArray[np.int64]
    alone: NDArray[np.int64]


def grid(top: float, bottom: float, beams: int, wide: float, step: float) -> Grid:
    """`beams` evenly from `top` to `bottom`, a ray each `step` within +-`wide`; degrees."""
    up = np.radians(np.linspace(top, bottom, beams))[:, None]
    turn = np.radians(np.arange(-wide, wide + step / 2, step))
    x, y = np.cos(up) * np.cos(turn), np.cos(up) * np.sin(turn)
    return Grid(
        directions=np.stack([x, y, np.sin(up) + 0 * turn], axis=2),
        azimuths=turn,
    )


def ray_plane(directions: Array, height: float) -> Array:
    """Distances [...] from the origin to the plane z = `height`, along directions [..., 3]."""
    z = directions[..., 2]
    toward = z * math.copysign(1.0, height) > FLAT
    return np.where(toward, height / np.where(toward, z, 1.0), NOWHERE)


def ray_box(directions: Array, centre: Array, size: Array, yaw: float) -> tuple[Array, Array]:
    """Distances [...] to a box that the origin is outside of, and the cosines there."""
    local, origin = _turned(directions, yaw), -_turned(centre, yaw)
    safe = np.where(np.abs(local) < FLAT, FLAT, local)
    first, second = (-size / 2 - origin) / safe, (size / 2 - origin) / safe
    entry = np.minimum(first, second)
    near, far = entry.max(axis=-1), np.maximum(first, second).min(axis=-1)
    hit = (near <= far) & (near > 0)
    side = entry.argmax(axis=-1)[..., None]
    cosine = np.abs(np.take_along_axis(local, side, axis=-1))[..., 0]
    return np.where(hit, near, NOWHERE), cosine


def ray_cylinder(
    directions: Array, centre: Array, radius: float, high: float
) -> tuple[Array, Array]:
    """Distances [...] to an upright cylinder that the origin is outside of, its ends included, and
    the cosines there.
    """
    x, y, z = directions[..., 0], directions[..., 1], directions[..., 2]
    square = x**2 + y**2
    half = x * centre[0] + y * centre[1]
    inner = half**2 - square * (centre[0] ** 2 + centre[1] ** 2 - radius**2)
    side = (half - np.sqrt(np.maximum(inner, 0))) / np.maximum(square, FLAT)
    within = np.abs(side * z - centre[2]) <= high / 2
    side = np.where((inner >= 0) & (side > 0) & within, side, NOWHERE)
    at = np.where(np.isfinite(side), side, 0.0)
    across = np.abs((at * x - centre[0]) * x + (at * y - centre[1]) * y) / radius
    # of the two ends, the one that faces the origin
    end = centre[2] + math.copysign(high / 2, -centre[2])
    cap = ray_plane(directions, end)
    flat = np.where(np.isfinite(cap), cap, 0.0)
    on = (flat * x - centre[0]) ** 2 + (flat * y - centre[1]) ** 2 <= radius**2
    cap = np.where(on, cap, NOWHERE)
    return np.minimum(side, cap), np.where(cap < side, np.abs(z), across)


def _turned(vectors: Array, yaw: float) -> Array:
    """Vectors [..., 3] as something that is turned by `yaw` has them."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([x * cos + y * sin, y * cos - x * sin, vectors[..., 2]], axis=-1)


def part_hits(directions: Array, part: Part) -> tuple[Array, Array]:
    """Distances and cosines [...] of a part."""
    if part.kind == "box":
        return ray_box(directions, part.centre, part.size, part.yaw)
    return ray_cylinder(directions, part.centre, part.size[0] / 2, part.size[2])


def window(azimuths: Array, part: Part) -> slice:
    """The turns whose rays can hit a part: those of the circle around it."""
    away = math.hypot(part.centre[0], part.centre[1])
    radius = math.hypot(part.size[0], part.size[1]) / 2
    if away <= radius:
        return slice(0, len(azimuths))
    middle, half = math.atan2(part.centre[1], part.centre[0]), math.asin(radius / away)
    if middle - half < -math.pi or middle + half > math.pi:  # behind, across the seam
        return slice(0, len(azimuths))
    low, high = np.searchsorted(azimuths, [middle - half, middle + half])
    return slice(int(low), int(high))


def cast(
    rays: Grid, parts: Sequence[Part], *, ground: float, ground_shade: float, owners: int
) -> Hits:
    """What each ray hits first of the parts and the ground at z = `ground`."""
    distance = ray_plane(rays.directions, ground)
    cosine = np.abs(rays.directions[..., 2])
    shade = np.full(distance.shape, ground_shade)
    owner = np.full(distance.shape, -1, dtype=np.int64)
    alone = np.zeros((owners, *distance.shape), dtype=np.bool_)
    bare = distance.copy()
    for part in parts:
        at = window(rays.azimuths, part)
        far, slant = part_hits(rays.directions[:, at], part)
        if part.owner >= 0:
            alone[part.owner][:, at] |= far < bare[:, at]
        closer = far < distance[:, at]
        for column, value in ((distance, far), (cosine, slant)):
            column[:, at][closer] = value[closer]
        shade[:, at][closer] = part.shade
        owner[:, at][closer] = part.owner
    nearest = np.bincount(owner[owner >= 0], minlength=owners)
    return Hits(
        distance=distance,
        cosine=cosine,
        shade=shade,
        owner=owner,
        nearest=nearest,
        alone=alone.reshape(owners, -1).sum(axis=1),
    )
