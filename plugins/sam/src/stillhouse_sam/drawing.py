"""Masks in colours on a photo.

h, w: the drawing's height and width in pixels.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

Sized = TypeVar("Sized", bound=Mapping[str, Any])  # Any: one entry is "area"
COVER = 0.5  # how much of a pixel is the mask's colour
EDGE = 400  # pixels of a drawing's side that an outline is one pixel wide for


def sides(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width scaled so that the longer one is `side`."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resized(photo: "NDArray[np.uint8]", size: tuple[int, int]) -> "NDArray[np.uint8]":
    """An image [h, w, 3] of the height and width `size`."""
    height, width = size
    image = Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(image)


def scaled(masks: Tensor, size: tuple[int, int]) -> "NDArray[np.bool_]":
    """Masks [K, ., .] as [K, h, w] = `size`: where at least half is inside."""
    x = masks[:, None].float()
    found = functional.interpolate(x, size, mode="bilinear", antialias=True)[:, 0]
    return (found >= 0.5).numpy()


def painted(
    photo: "NDArray[np.uint8]",
    masks: "Iterable[NDArray[np.bool_]]",
    colours: "Sequence[NDArray[np.float64]] | None" = None,
) -> "NDArray[np.uint8]":
    """An image [h, w, 3] with masks [h, w] laid on it, each over those before, filled and with an
    outline. Without `colours` (RGB, 0..1) a mask's is that of the place it has (`colour_at`), so
    that two models' masks of a thing look alike.
    """
    canvas, layer = photo.astype(np.float64) / 255, np.zeros((*photo.shape[:2], 3))
    cover = np.zeros((*photo.shape[:2], 1))
    width = max(1, round(max(photo.shape[:2]) / EDGE))
    for place, mask in enumerate(masks):
        if not mask.any():
            continue
        colour = colour_at(mask) if colours is None else colours[place]
        edge = mask & ~_shrunk(mask, width)
        layer[mask], cover[mask] = colour, COVER
        layer[edge], cover[edge] = 0.5 + 0.5 * colour, 1.0
    whole = (1 - cover) * canvas + cover * layer
    return np.rint(255 * whole).astype(np.uint8)


def colour_at(mask: "NDArray[np.bool_]") -> "NDArray[np.float64]":
    """A colour (RGB, 0..1) by where the middle of a mask is; neighbours have different ones."""
    rows, columns = np.nonzero(mask)
    y, x = rows.mean() / mask.shape[0], columns.mean() / mask.shape[1]
    return _hue(3 * x + 5 * y)


def colours(count: int) -> "list[NDArray[np.float64]]":
    """`count` colours (RGB, 0..1), each far from the one before."""
    return [_hue(0.13 + 0.618034 * place) for place in range(count)]


def by_area(things: Iterable[Sized]) -> list[Sized]:
    """Records of masks, the large ones first, so that the small ones are seen."""
    return sorted(things, key=lambda thing: -float(thing["area"]))


def _hue(value: float) -> "NDArray[np.float64]":
    import colorsys

    return np.array(colorsys.hsv_to_rgb(value % 1, 0.8, 1.0))


def _shrunk(mask: "NDArray[np.bool_]", by: int) -> "NDArray[np.bool_]":
    """Without the pixels that are nearer than `by` to one outside, the image's edge included."""
    x = torch.from_numpy(mask)[None].float()
    inside = -functional.max_pool2d(functional.pad(-x, (by,) * 4), 2 * by + 1, stride=1)
    return inside[0].numpy() > 0.5
