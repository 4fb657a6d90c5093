"""Built-in data: faces drawn from 68 points that bend, turn and hide, the same on every machine.

A face is a head of 68 points in three dimensions (jaw 17, brows 10, nose 9, eyes 12, mouth 20, in
the order of 300-W) that a few numbers deform (jaw and nose, an open mouth, a smile, brows, lids)
and that is turned, moved and scaled before it is drawn. The points of an image are those it was
drawn from: exact, also where something hides them.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Points = NDArray[np.float64]  # [n, 2] or [n, 3]: x to the right, y down, z to the viewer
Colour = tuple[int, int, int]

SIZE = 32
FINER = 4  # drawn larger, then reduced: smooth edges
TRAIN, TEST = 320, 160
SEED = 68
NOISE = 6.0  # standard deviation of the pixels' noise, in grey levels


def faces() -> Mapping[str, NDArray[np.uint8] | NDArray[np.float32]]:
    """`TRAIN` and `TEST` drawn faces: uint8 images [N, 3, 32, 32] and points [N, 136], x0, y0,
    x1, y1, ... in fractions of the image's side.
    """
    return dict(_faces(TRAIN, TEST, SIZE, SEED))


@functools.cache
def _faces(train: int, test: int, size: int, seed: int) -> Mapping[str, Any]:  # Any: arrays
    rng = np.random.default_rng(seed)
    drawn = [face(rng, size) for _ in range(train + test)]
    images = np.stack([image for image, _ in drawn])
    points = np.stack([shape for _, shape in drawn])
    return {
        "train_images": images[:train],
        "train_landmarks": points[:train],
        "test_images": images[train:],
        "test_landmarks": points[train:],
    }


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a face is bent: numbers around 0, of about one standard deviation each."""

    jaw: float
    chin: float
    nose: float
    mouth: float
    smile: float
    gape: float
    brows: float
    frown: float
    lids: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "Look":
        """A look drawn from a normal distribution, cut at two standard deviations."""
        names = [field.name for field in fields(cls)]
        values = rng.standard_normal(len(names)).clip(-2, 2)
        return cls(**dict(zip(names, values.tolist(), strict=True)))


def head(look: Look) -> Points:
    """The 68 points [68, 3] of a face seen from the front; its half width is about 1."""
    brows, eyes = (_brow(look, -1), _brow(look, 1)), (_eye(look, -1), _eye(look, 1))
    return np.concatenate([_jaw(look), *brows, _nose(look), *eyes, _mouth(look)])


def _jaw(look: Look) -> Points:
    angle = np.linspace(np.pi, 0, 17)
    wide, long = 1.0 + 0.06 * look.jaw, 1.15 + 0.07 * look.chin + 0.04 * max(0.0, look.gape)
    x, y = wide * np.cos(angle), -0.1 + long * np.sin(angle) ** (1.15 + 0.12 * look.jaw)
    return np.stack([x, y, -0.75 + 0.75 * np.sin(angle)], axis=1)


def _brow(look: Look, side: int) -> Points:
    along = np.linspace(0, 1, 5)
    x = 0.80 - 0.62 * along
    y = -0.58 - 0.06 * look.brows - 0.12 * np.sin(np.pi * along) + 0.05 * look.frown * along
    return _outside_in(x, y, 0.15 + 0.15 * along, side)


def _outside_in(x: Points, y: Points, z: Points, side: int) -> Points:
    """Points that run from left to right: the left side's from its outside, the right's from its
    inside.
    """
    points = np.stack([side * x, y, z], axis=1)
    return points if side < 0 else points[::-1]


def _nose(look: Look) -> Points:
    long = 0.55 + 0.05 * look.nose
    down = np.linspace(0, 1, 4)
    bridge = np.stack([0 * down, -0.32 + long * down, 0.3 + 0.4 * down], axis=1)
    along = np.linspace(-1, 1, 5)
    wide = 0.22 + 0.03 * look.nose
    tip = bridge[-1, 1] + 0.1 + 0.05 * (1 - along**2)
    return np.concatenate([bridge, np.stack([wide * along, tip, 0.5 - 0.15 * along**2], axis=1)])


def _eye(look: Look, side: int) -> Points:
    # corner, two of the upper lid, corner, two of the lower lid
    angle = np.deg2rad([180, 120, 60, 0, -60, -120])
    open_ = 0.085 + 0.03 * look.lids
    x, y = 0.43 * side + 0.17 * np.cos(angle), -0.3 - open_ * np.sin(angle)
    return np.stack([x, y, np.full(6, 0.12)], axis=1)


def _mouth(look: Look) -> Points:
    wide, open_ = 0.40 + 0.05 * look.mouth, 0.13 * max(0.0, look.gape)
    outer = np.deg2rad([180, 150, 115, 90, 65, 30, 0, -30, -65, -90, -115, -150])
    inner = np.deg2rad([180, 130, 90, 50, 0, -50, -90, -130])
    rings = [_lips(look, outer, wide, 0.11 + open_), _lips(look, inner, 0.8 * wide, open_ + 0.01)]
    return np.concatenate(rings)


def _lips(look: Look, angle: Points, wide: float, high: float) -> Points:
    x, lift = wide * np.cos(angle), 0.07 * look.smile * np.cos(angle) ** 2
    y = 0.62 + 0.05 * look.nose - high * np.sin(angle) - lift
    return np.stack([x, y, 0.35 - 0.25 * np.cos(angle) ** 2], axis=1)


def face(
    rng: np.random.Generator, size: int = SIZE
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """An image uint8 [3, size, size] and its points float32 [136], in fractions of the side."""
    look = Look.drawn(rng)
    turned = _turned(np.concatenate([head(look), _skull()]), rng)
    placed = _placed(turned, rng)
    image = _drawn(placed, rng, size)
    return image, placed[:68].astype(np.float32).reshape(-1)


def _skull() -> Points:
    """The outline of the forehead [9, 3], which has no landmarks."""
    angle = np.linspace(0, np.pi, 9)
    return np.stack([np.cos(angle), -0.1 - 1.05 * np.sin(angle), -0.6 + 0 * angle], axis=1)


def _turned(points: Points, rng: np.random.Generator) -> Points:
    """Turned about the vertical (yaw), then the horizontal (pitch), then the line of sight (roll);
    seen from afar.
    """
    yaw, pitch, roll = np.deg2rad(rng.uniform((-30, -12, -20), (30, 12, 20)))
    turn_y = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    turn_x = [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
    turn_z = [[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]]
    turned = points @ (np.array(turn_z) @ np.array(turn_x) @ np.array(turn_y)).T
    return turned[:, :2]


def _placed(points: Points, rng: np.random.Generator) -> Points:
    """Moved and scaled so that the 68 points fill about two thirds of the image, all inside."""
    low, high = points[:68].min(0), points[:68].max(0)
    scale = rng.uniform(0.58, 0.76) / (high - low).max()
    middle = 0.5 + rng.uniform(-0.08, 0.08, 2)
    return (points - (low + high) / 2) * scale + middle


def _drawn(points: Points, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    large = size * FINER
    skin = _skin(rng)
    image = Image.fromarray(_background(rng, large))
    draw = ImageDraw.Draw(image)
    at = points * large
    _draw_head(draw, at, skin, _shade(rng, (10, 120)))
    _draw_features(draw, at, skin, rng)
    _draw_occluder(draw, rng, large)
    small = image.resize((size, size), Image.Resampling.BOX)
    lit = np.asarray(small, dtype=np.float64) * _light(rng, size)
    noisy = lit + rng.normal(0, NOISE, lit.shape)
    return np.rint(noisy.clip(0, 255)).astype(np.uint8).transpose(2, 0, 1)


def _skin(rng: np.random.Generator) -> Colour:
    tone = rng.uniform(0.35, 1.0)
    warm = tone * np.array([238, 200, 172]) + rng.normal(0, 8, 3)
    return _colour(warm)


def _shade(rng: np.random.Generator, span: tuple[int, int]) -> Colour:
    return _colour(rng.uniform(*span) * np.array([1, 0.8, 0.65]))


def _colour(values: Points) -> Colour:
    red, green, blue = (int(v) for v in values.clip(0, 255))
    return red, green, blue


def _background(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """A slope between two colours."""
    start, end = rng.uniform(20, 235, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    along = (np.cos(angle) * x + np.sin(angle) * y + 0.75) / 1.5
    return (start + along[..., None] * (end - start)).clip(0, 255).astype(np.uint8)


def _draw_head(draw: ImageDraw.ImageDraw, at: Points, skin: Colour, hair: Colour) -> None:
    skull, jaw = at[68:], at[:17]
    outline = np.concatenate([jaw, skull])
    middle = outline.mean(0)
    _fill(draw, middle + 1.12 * (np.concatenate([jaw[[0, 16]], skull]) - middle), hair)
    _fill(draw, np.concatenate([jaw, middle + 0.9 * (skull - middle)]), skin)


def _draw_features(
    draw: ImageDraw.ImageDraw, at: Points, skin: Colour, rng: np.random.Generator
) -> None:
    dark, lip = _darker(skin, 0.6), _colour(np.array(skin) * (0.95, 0.55, 0.55))
    thick = max(1, round(np.ptp(at[:17, 0]) / 30))
    brow, iris = _shade(rng, (10, 90)), _shade(rng, (20, 130))
    for brows in (at[17:22], at[22:27]):
        draw.line(_flat(brows), fill=brow, width=2 * thick)
    draw.line(_flat(at[27:31]), fill=_darker(skin, 0.8), width=thick)
    draw.line(_flat(at[31:36]), fill=dark, width=thick)
    for eye in (at[36:42], at[42:48]):
        _fill(draw, eye, (240, 240, 240))
        radius = 0.8 * abs(eye[1, 1] - eye[5, 1]) / 2 + 1
        x, y = eye.mean(0)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=iris)
        draw.line(_flat(eye[[0, 1, 2, 3]]), fill=dark, width=thick)
    _fill(draw, at[48:60], lip)
    _fill(draw, at[60:68], (90, 25, 30))


def _darker(colour: Colour, by: float) -> Colour:
    return _colour(np.array(colour) * by)


def _fill(draw: ImageDraw.ImageDraw, points: Points, colour: Colour) -> None:
    draw.polygon(_flat(points), fill=colour)


def _flat(points: Points) -> list[float]:
    return [float(value) for value in points.reshape(-1)]


def _draw_occluder(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: int) -> None:
    """In a third of the images, a box or a disc over a part of it."""
    chance, round_ = rng.random(2)
    x, y, wide, high = rng.uniform((0, 0, 0.15, 0.15), (0.9, 0.9, 0.4, 0.4)) * size
    colour = _colour(rng.uniform(0, 255, 3))
    if chance > 1 / 3:
        return
    box = (float(x), float(y), float(x + wide), float(y + high))
    if round_ < 0.5:
        draw.ellipse(box, fill=colour)
    else:
        draw.rectangle(box, fill=colour)


def _light(rng: np.random.Generator, size: int) -> Points:
    """Brightness [size, size, 1] that falls off to one side."""
    angle, depth = rng.uniform((0, 0), (2 * np.pi, 0.5))
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    slope = np.cos(angle) * x + np.sin(angle) * y
    return (rng.uniform(0.75, 1.15) * (1 + depth * slope))[..., None]
