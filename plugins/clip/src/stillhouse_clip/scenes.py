"""Built-in data: drawn scenes of 5 shapes x 6 colours x 4 textures, the same on every machine.

A class is one combination. Its name is an invented word without any information on it; its
description names all three. So it can be measured whether a description carries what a name does
not.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Plane = NDArray[np.float32]

SHAPES = ("disc", "square", "triangle", "cross", "ring")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "green": (46, 160, 67),
    "blue": (40, 90, 220),
    "yellow": (232, 200, 40),
    "purple": (150, 60, 190),
    "white": (240, 240, 240),
}
TEXTURES = ("plain", "striped", "dotted", "chequered")

SIZE = 32
FINER = 2  # drawn larger, then averaged: smooth edges
TRAIN, TEST = 12, 6  # scenes of a class
SEED = 120
NOISE = 10.0  # standard deviation of the pixels' noise, in grey levels
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A class of scenes: what is drawn, and by which words."""

    shape: str
    colour: str
    texture: str
    name: str

    @property
    def description(self) -> str:
        """One sentence on its looks, in English."""
        return f"a {self.colour} {self.texture} {self.shape} on grey ground"


def classes() -> tuple[Scene, ...]:
    """All 120 classes, in order of shape, colour and texture."""
    parts = list(product(SHAPES, COLOURS, TEXTURES))
    named = zip(parts, _words(len(parts)), strict=True)
    return tuple(Scene(shape=s, colour=c, texture=t, name=name) for (s, c, t), name in named)


def _words(count: int) -> Sequence[str]:
    """Different invented words of three syllables."""
    rng, words = np.random.default_rng(SEED), dict[str, None]()
    while len(words) < count:
        letters = [rng.choice(list(letters)) for letters in (CONSONANTS, VOWELS) * 3]
        words["".join(map(str, letters))] = None
    return list(words)


def scenes() -> Mapping[str, NDArray[np.uint8] | NDArray[np.int64] | NDArray[np.str_]]:
    """`TRAIN` and `TEST` scenes of each class: uint8 images [N, 3, 32, 32] and labels [N]; by class
    in the order of the labels, text arrays [120]: name, description, shape, colour, texture.
    """
    return dict(_scenes(TRAIN, TEST, SIZE, SEED))


@functools.cache
def _scenes(train: int, test: int, size: int, seed: int) -> Mapping[str, Any]:  # Any: arrays
    known, found = classes(), dict[str, Any]()
    for part, (name, count) in enumerate((("train", train), ("test", test))):
        rng = np.random.default_rng([seed, part])
        labels = np.repeat(np.arange(len(known)), count)
        found[f"{name}_images"] = np.stack([drawn(known[label], rng, size) for label in labels])
        found[f"{name}_labels"] = labels.astype(np.int64)
    for column in ("name", "description", "shape", "colour", "texture"):
        found[column] = np.array([getattr(scene, column) for scene in known])
    return found


def drawn(scene: Scene, rng: np.random.Generator, size: int = SIZE) -> Pixels:
    """An image [3, size, size] of the class: the shape anywhere, turned and of any size, in a
    colour a little off, over a grey ground that rises to one side, with noise.
    """
    grid = _grid(size * FINER)
    centre, scale = rng.uniform(-0.25, 0.25, 2).astype(np.float32), rng.uniform(0.45, 0.7)
    angle = rng.uniform(-0.5, 0.5)
    y, x = grid[0] - centre[0], grid[1] - centre[1]
    u = (np.cos(angle) * x + np.sin(angle) * y) / scale
    v = (np.cos(angle) * y - np.sin(angle) * x) / scale
    slope = rng.uniform(-40, 40, 2)
    ground = rng.uniform(70, 130) + slope[0] * grid[0] + slope[1] * grid[1]
    image = np.repeat(ground[None], 3, axis=0)
    colour = np.array(COLOURS[scene.colour]) + rng.uniform(-25, 25, 3)
    inside = _shape(scene.shape, u, v)
    light = _texture(scene.texture, u, v)
    image[:, inside & light], image[:, inside & ~light] = colour[:, None], 0.25 * colour[:, None]
    image = image.reshape(3, size, FINER, size, FINER).mean((2, 4))
    return (
        (image + NOISE * rng.standard_normal(image.shape, np.float32)).clip(0, 255).astype(np.uint8)
    )


@functools.cache
def _grid(side: int) -> Plane:
    """Rows and columns of pixel centres, [2, side, side], from -1 to 1."""
    return (((np.mgrid[:side, :side] + 0.5) / side) * 2 - 1).astype(np.float32)


def _shape(shape: str, u: Plane, v: Plane) -> Mask:
    radius = np.sqrt(u * u + v * v)
    match shape:
        case "disc":
            return radius < 0.95
        case "square":
            return np.maximum(abs(u), abs(v)) < 0.85
        case "triangle":
            return (v < 0.75) & (v > 1.9 * abs(u) - 0.95)
        case "cross":
            return (np.minimum(abs(u), abs(v)) < 0.32) & (np.maximum(abs(u), abs(v)) < 0.95)
        case _:
            return (radius < 0.95) & (radius > 0.5)


def _texture(texture: str, u: Plane, v: Plane) -> Mask:
    """Where the colour is light; the rest of the shape is dark."""
    match texture:
        case "plain":
            return np.ones_like(u, dtype=bool)
        case "striped":
            return np.floor(5 * v) % 2 == 0
        case "dotted":
            return np.hypot(3 * u % 1 - 0.5, 3 * v % 1 - 0.5) > 0.33
        case _:
            return (np.floor(3.4 * u) + np.floor(3.4 * v)) % 2 == 0
