"""Built-in data: rendered scenes of several textured objects with their exact masks.

A scene is a background, often of two regions, and up to `OBJECTS` shapes laid over one another. A
part (a smaller shape on a bigger one, as a wheel on a car) is an object of its own, and its whole
has it too; whatever else lies in front takes its pixels away. Surfaces are noise of several
frequencies, stripes, checks or spots, shaded to one side or like a ball; the whole has a light, a
blur and a camera's noise.

S: the side of a frame. A scene takes all of its width or of its height; beyond it there are zeros.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from stillhouse.errors import BadSetting

Array = NDArray[np.float32]
Points = NDArray[np.float64]  # [P, 2]: x, y
Mask = NDArray[np.bool_]

SIZE = 64
TRAIN, TEST = 160, 48
SEED = 2312
OBJECTS = 8
FINER = 2  # outlines are drawn larger, then reduced: smooth edges
SMALLEST = 0.003  # of the frame; less of an object in sight is none
GROUND, PART, SHADOW, HOLE, BLURRED = 0.4, 0.3, 0.4, 0.08, 0.6  # how often, of scenes or shapes


def scenes() -> Mapping[str, NDArray[Any]]:  # Any: uint8 and int64 arrays
    """`TRAIN` and `TEST` scenes as `render` gives them, of 64 px: train_images, train_sizes,
    train_masks and those of test.
    """
    return dict(_scenes(TRAIN, TEST, SIZE, SEED))


@functools.cache
def _scenes(train: int, test: int, size: int, seed: int) -> Mapping[str, NDArray[Any]]:
    parts = {
        "train": render(train, size=size, seed=seed),
        "test": render(test, size=size, seed=seed + 1),
    }
    return {
        f"{split}_{name}": column for split, part in parts.items() for name, column in part.items()
    }


def render(count: int, *, size: int, seed: int) -> dict[str, NDArray[Any]]:
    """`count` scenes: images uint8 [N, 3, S, S], sizes int64 [N, 2] (height, width) and masks uint8
    [N, OBJECTS, S, S / 8], packed; the first of a scene's masks are its objects, the rest empty.

    Scene i depends on size, seed and i alone. Raises BadSetting unless 8 divides the size.
    """
    if size < 16 or size % 8:
        raise BadSetting(f"size of a scene must be a multiple of 8 from 16 on (got {size})")
    images = np.zeros((count, 3, size, size), dtype=np.uint8)
    masks = np.zeros((count, OBJECTS, size, size // 8), dtype=np.uint8)
    sizes = np.zeros((count, 2), dtype=np.int64)
    for row in range(count):
        image, objects = scene(size=size, seed=seed, index=row)
        height, width = sizes[row] = image.shape[:2]
        images[row, :, :height, :width] = image.transpose(2, 0, 1)
        whole = np.zeros((len(objects), size, size), dtype=bool)
        whole[:, :height, :width] = objects
        masks[row, : len(objects)] = np.packbits(whole, axis=-1)
    return {"images": images, "sizes": sizes, "masks": masks}


def scene(*, size: int, seed: int, index: int) -> tuple[NDArray[np.uint8], list[Mask]]:
    """The scene of that index: an image [h, w, 3] and the masks [h, w] of its objects, from back
    to front; the longer of h and w is `size`.
    """
    rng = np.random.default_rng([seed, index])
    height, width = _sides(rng, size)
    canvas = surface(rng, height, width, size)
    masks: list[Mask] = []
    if rng.random() < GROUND:
        ground = _ground(rng, height, width)
        canvas = np.where(ground[..., None], surface(rng, height, width, size), canvas)
        masks.append(ground)
    count = int(rng.integers(3, OBJECTS + 1))
    radii = size * np.exp(rng.uniform(np.log(0.07), np.log(0.42), count))
    order = np.argsort(-radii * np.exp(rng.normal(0, 0.5, count)))  # small ones rather in front
    whole: Mask | None = None
    for radius in radii[order][: OBJECTS - len(masks)].tolist():
        if whole is not None and whole.any() and rng.random() < PART:
            mask = _add(rng, canvas, radius * 0.5, size, within=whole)
            masks = [m if m is whole else m & ~mask for m in masks]
        else:
            mask = _add(rng, canvas, radius, size, within=None)
            masks = [m & ~mask for m in masks]
            whole = mask
        masks.append(mask)
    seen = [mask for mask in masks if mask.sum() >= SMALLEST * mask.size]
    return _taken(rng, canvas, size), seen


def _sides(rng: np.random.Generator, size: int) -> tuple[int, int]:
    shorter = max(8, round(size * min(1.0, rng.uniform(0.6, 1.15))))
    return (size, shorter) if rng.random() < 0.4 else (shorter, size)


def _add(
    rng: np.random.Generator, canvas: Array, radius: float, size: int, *, within: Mask | None
) -> Mask:
    """Paints a shape of about this radius, as a part if it is to be `within` another; its mask."""
    height, width = canvas.shape[:2]
    if within is None:
        middle = rng.uniform((0, 0), (width, height))
    else:
        place = np.flatnonzero(within)[int(rng.integers(within.sum()))]
        middle = np.array([place % width, place // width])
        radius = min(radius, 0.6 * float(within.sum()) ** 0.5)
    alpha = _alpha(rng, [middle + radius * part for part in outline(rng)], height, width)
    if within is not None:
        alpha *= within
    rows, columns = (np.flatnonzero(alpha.any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((height, width), dtype=bool)
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    if rng.random() < SHADOW and within is None:
        canvas *= 1 - _shadow(rng, alpha, size)[..., None]
    tall, wide = alpha[box].shape
    paint = surface(rng, tall, wide, size) * _relief(rng, tall, wide)[..., None]
    canvas[box] += alpha[box][..., None] * (paint - canvas[box])
    return alpha >= 0.5


def _alpha(rng: np.random.Generator, parts: Sequence[Points], height: int, width: int) -> Array:
    """How much of each pixel [h, w] polygons in pixels cover, in 0 ... 1."""
    image = Image.new("L", (width * FINER, height * FINER))
    draw = ImageDraw.Draw(image)
    for part in parts:
        draw.polygon((part * FINER).ravel().tolist(), fill=255)
    if rng.random() < HOLE:
        middle = parts[0].mean(0)
        draw.polygon((FINER * (middle + 0.5 * (parts[0] - middle))).ravel().tolist(), fill=0)
    return np.asarray(image.reduce(FINER), dtype=np.float32) * np.float32(1 / 255)


def _shadow(rng: np.random.Generator, alpha: Array, size: int) -> Array:
    """What a shape takes from the light around it [h, w]."""
    moved = Image.fromarray((alpha * 255).astype(np.uint8)).transform(
        alpha.shape[::-1], Image.Transform.AFFINE,
        (1, 0, float(rng.normal(0, size / 30)), 0, 1, -float(rng.uniform(0, size / 16))),
    )  # fmt: skip
    soft = moved.filter(ImageFilter.GaussianBlur(float(rng.uniform(1, 5)) * size / 128))
    return np.asarray(soft, dtype=np.float32) * np.float32(rng.uniform(0.2, 0.6) / 255)


def outline(rng: np.random.Generator) -> list[Points]:
    """The polygons of one shape [P, 2], of a radius of about 1 around (0, 0): an ellipse or rounded
    box, a polygon, a star, a blob, or several ellipses in a chain.
    """
    kind = rng.integers(5)
    if kind == 0:
        parts = [_oval(rng)]
    elif kind == 1:
        corners = int(rng.integers(3, 8))
        angle = (np.arange(corners) + rng.uniform(-0.4, 0.4, corners)) * 2 * np.pi / corners
        parts = [_polar(angle, rng.uniform(0.7, 1.2, corners))]
    elif kind == 2:
        tips = int(rng.integers(4, 9))
        angle = np.arange(2 * tips) * np.pi / tips
        parts = [_polar(angle, np.tile([1.15, rng.uniform(0.4, 0.75)], tips))]
    elif kind == 3:
        angle, wave = np.linspace(0, 2 * np.pi, 48, endpoint=False), np.arange(1, 6)
        high, start = rng.normal(0, 0.3, 5) / wave, rng.uniform(0, 2 * np.pi, 5)
        bumps = (high[:, None] * np.cos(wave[:, None] * angle + start[:, None])).sum(0)
        parts = [_polar(angle, (1 + bumps).clip(0.3, 1.6))]
    else:
        parts = _chain(rng)
    turn = rng.uniform(0, 2 * np.pi)
    squeezed = np.diag([1.0, rng.uniform(0.45, 1.0)])
    turned = squeezed @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return [part @ turned for part in parts]


def _chain(rng: np.random.Generator) -> list[Points]:
    parts, middle = [0.7 * _oval(rng)], np.zeros(2)
    for _ in range(int(rng.integers(1, 4))):
        angle, by = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 0.55)
        middle = 0.75 * np.array([np.cos(angle), np.sin(angle)])
        parts.append(middle + by * _oval(rng))
    return parts


def _oval(rng: np.random.Generator) -> Points:
    """An ellipse, rounder or nearer to a box, of any proportion."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    power = 2 / rng.choice([2, 2, 2.6, 5, 12])
    x, y = np.cos(angle), np.sin(angle)
    points = np.stack([np.sign(x) * abs(x) ** power, np.sign(y) * abs(y) ** power], axis=1)
    return points * (1.0, rng.uniform(0.5, 1.0))


def _polar(angle: NDArray[np.float64], radius: NDArray[np.float64]) -> Points:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _ground(rng: np.random.Generator, height: int, width: int) -> Mask:
    """All below an uneven line."""
    x = np.linspace(0, 1, width)
    waves = sum(
        rng.normal(0, 0.06) / k * np.sin(2 * np.pi * k * x + rng.uniform(0, 6)) for k in (1, 2, 5)
    )
    line = rng.uniform(0.3, 0.75) + rng.normal(0, 0.15) * (x - 0.5) + waves
    return (np.arange(height)[:, None] + 0.5) / height > line


def surface(rng: np.random.Generator, height: int, width: int, size: int) -> Array:
    """A texture [h, w, 3] in grey levels, in colours that a pattern mixes, with finer noise."""
    first = _colour(rng)
    second = first + rng.normal(0, rng.uniform(6, 55), 3)
    mix = _pattern(rng, height, width, size)
    fine = noise(rng, height, width, cell=float(rng.uniform(1, 3)) * size / 128, octaves=1)
    rough = fine * np.float32(rng.uniform(0, 18))
    return (first + mix[..., None] * (second - first) + rough[..., None]).astype(np.float32)


def _colour(rng: np.random.Generator) -> NDArray[np.float64]:
    """Any brightness, seldom a pure colour."""
    return (rng.uniform(25, 230) + rng.normal(0, 28, 3)).clip(5, 250)


def _pattern(rng: np.random.Generator, height: int, width: int, size: int) -> Array:
    """How much of the second colour [h, w], in about 0 ... 1: clouds, stripes, checks, spots, or
    one slope.
    """
    kind = rng.integers(6)
    if kind <= 1:
        cell = size * float(rng.uniform(0.05, 0.4))
        return 0.5 + 0.5 * noise(rng, height, width, cell=cell, octaves=int(rng.integers(2, 5)))
    period = size * float(np.exp(rng.uniform(np.log(0.04), np.log(0.25))))
    if kind == 2:
        steep = np.tanh(3 * noise(rng, height, width, cell=period, octaves=1))
        return (0.5 + 0.5 * steep).astype(np.float32)
    angle = rng.uniform(0, np.pi)
    y, x = np.ogrid[:height, :width]
    along = (np.cos(angle) * x + np.sin(angle) * y).astype(np.float32)
    if kind == 3:
        return (along - along.min()) * np.float32(1 / max(float(np.ptp(along)), 1.0))
    bent = along + noise(rng, height, width, cell=4 * period, octaves=1) * np.float32(period / 3)
    wave = np.sin(bent * np.float32(2 * np.pi / period))
    if kind == 4:
        return 0.5 + 0.5 * wave
    across = (np.cos(angle) * y - np.sin(angle) * x).astype(np.float32)
    return 0.5 + 0.5 * np.tanh(4 * wave * np.sin(across * np.float32(2 * np.pi / period)))


def noise(rng: np.random.Generator, height: int, width: int, *, cell: float, octaves: int) -> Array:
    """Smooth noise [h, w] of deviation about 1/2: values `cell` pixels apart, joined; each further
    octave has half the cell and half the height.
    """
    total, high = np.zeros((height, width), dtype=np.float32), 0.6
    for _ in range(octaves):
        step = max(cell, 1.0)
        grid = (int(height / step) + 2, int(width / step) + 2)
        values = Image.fromarray(rng.standard_normal(grid, dtype=np.float32))
        box = (0.5, 0.5, 0.5 + width / step, 0.5 + height / step)
        box = (0.0, 0.0, min(box[2], grid[1]), min(box[3], grid[0]))
        total += np.float32(high) * np.asarray(
            values.resize((width, height), Image.Resampling.BICUBIC, box=box)
        )
        cell, high = cell / 2, high / 2
    return total


def _relief(rng: np.random.Generator, height: int, width: int) -> Array:
    """Brightness [h, w] about 1: a slope, or like a ball lit from one side."""
    depth, angle, ball = rng.uniform(0, 0.45), rng.uniform(0, 2 * np.pi), rng.random() < 0.5
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    slope = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    relief = slope + (0.6 - x**2 - y**2 if ball else 0)
    return (1 + depth * relief).astype(np.float32)


def _taken(rng: np.random.Generator, canvas: Array, size: int) -> NDArray[np.uint8]:
    """The image a camera takes: light to one side, its colour, blur and noise."""
    height, width = canvas.shape[:2]
    light = rng.uniform(0.7, 1.2) * rng.uniform(0.9, 1.1, 3)
    lit = canvas * _relief(rng, height, width)[..., None] * light.astype(np.float32)
    blur, grain = rng.uniform(0.2, 1.2) * size / 128, rng.uniform(1, 9)
    if rng.random() < BLURRED:
        image = Image.fromarray(lit.clip(0, 255).astype(np.uint8))
        lit = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
    noisy = lit + np.float32(grain) * rng.standard_normal(lit.shape, dtype=np.float32)
    return np.rint(noisy.clip(0, 255)).astype(np.uint8)
