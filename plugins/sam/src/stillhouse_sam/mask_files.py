"""Files of masks: which pixel belongs to which object, by its value.

h, w: an image's height and width in pixels. c: channels.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillhouse.data.images import load_image
from stillhouse.errors import BadData

LOSSY = ("JPEG", "MPO", "JPEG2000", "AVIF")  # formats that change values
GREY = ("1", "L", "P", "I", "I;16", "I;16B")
VOC_VOID = 255, (224, 224, 192)  # the palette entry of PASCAL VOC that is no object, and its colour
PNG = b"\x89PNG\r\n\x1a\n"
DEPTH = 24  # of a PNG's bytes: bits a channel, then its kind of colour
COLOURS = (2, 4, 6)  # kinds with several channels
SMOOTHED = 3  # values that lie on edges alone, from which on a mask is taken for a smoothed one


def read_ids(
    path: Path, height: int, width: int, *, void: frozenset[int] = frozenset()
) -> NDArray[np.int64]:
    """The ids [h, w] of a mask file: its grey value or palette index, or R + 256 G + 65536 B; 0
    where nothing is, and for values in `void` and VOC's own.

    Where the colours are one and the transparency is not, the alpha channel is the mask. Raises
    BadData for JPEG, smoothed masks, floating values, 16 bits a channel, and colours together with
    transparency that says something else.
    """
    image = load_image(path, str(path), annotated=True)
    if (image.height, image.width) != (height, width):
        raise BadData(
            f"{path}: {image.width} x {image.height} pixels, but its image has "
            f"{width} x {height}; correct it"
        )
    _check_format(path, image)
    channels = _channels(path, image)
    ids = (channels * 256 ** np.arange(channels.shape[-1])).sum(-1)
    # a palette's numbers are in no order, its colours are
    shown = np.asarray(image.convert("RGB")) if image.mode == "P" else channels
    _check_edges(path, shown.astype(np.int64), ids)
    nothing = void | ({VOC_VOID[0]} if _of_voc(image) else set())
    return np.where(np.isin(ids, sorted(nothing)), 0, ids) if nothing else ids


def _check_format(path: Path, image: Image.Image) -> None:
    kind = image.format or ""
    if kind in LOSSY:
        raise BadData(
            f"{path}: a mask as {kind}, which changes values beside every edge: one object becomes "
            "many; save masks as PNG from their source"
        )
    head = path.read_bytes()[: DEPTH + 2] if kind == "PNG" else b""
    if head.startswith(PNG) and head[DEPTH] == 16 and head[DEPTH + 1] in COLOURS:
        raise BadData(
            f"{path}: 16 bits a channel, of which only 8 can be read; save ids as RGB with 8 bits "
            "(R + 256 G + 65536 B) or as grey with 16"
        )


def _channels(path: Path, image: Image.Image) -> NDArray[np.int64]:
    """What the ids are made of, [h, w, c]: c is 1 of grey values, 3 of colours."""
    if image.mode in GREY:
        return np.asarray(image).astype(np.int64)[..., None]
    if image.mode not in ("LA", "RGB", "RGBA"):
        raise BadData(
            f"{path}: a mask of mode {image.mode}; expected grey values, a palette or RGB"
        )
    values = np.asarray(image).astype(np.int64)
    if image.mode == "RGB":
        return values
    colours, alpha = values[..., :-1], values[..., -1]
    if (alpha == alpha[0, 0]).all():
        return colours
    if (colours == colours[0, 0]).all():
        return alpha[..., None]
    if not colours[alpha == 0].any() and np.isin(alpha, (0, 255)).all():
        return colours  # transparent where there is no object
    raise BadData(
        f"{path}: both its colours and its transparency differ from place to place; save the "
        "objects' values without an alpha channel"
    )


def _check_edges(path: Path, channels: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
    """Raises BadData where most values are on edges alone, each between those beside it."""
    values, place = np.unique(ids, return_inverse=True)
    place, count = place.ravel(), len(values)
    areas = np.bincount(place, minlength=count)
    solid = np.bincount(place, weights=_blocks(channels).ravel(), minlength=count) > 0
    mixed = np.bincount(place, weights=_between(channels).ravel(), minlength=count)
    smoothed = ~solid & (values != 0) & (2 * mixed > areas)
    every = np.count_nonzero(values)
    if smoothed.sum() >= SMOOTHED and 2 * smoothed.sum() >= every:
        raise BadData(
            f"{path}: {smoothed.sum()} of its {every} values lie only on edges, between the values "
            "beside them: a smoothed mask, in which one object becomes many; draw it without "
            "anti-aliasing, scale it by nearest neighbour"
        )


def _blocks(channels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which pixels [h, w] are in a block of 2 x 2 of their own value."""
    right = (channels[:, 1:] == channels[:, :-1]).all(-1)
    down = (channels[1:] == channels[:-1]).all(-1)
    block = right[1:] & right[:-1] & down[:, 1:] & down[:, :-1]
    found = np.zeros(channels.shape[:2], dtype=bool)
    for rows in (slice(None, -1), slice(1, None)):
        for columns in (slice(None, -1), slice(1, None)):
            found[rows, columns] |= block
    return found


def _between(channels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which pixels [h, w] lie between the least and the largest value around them, in each channel;
    in one of them really between.
    """
    height, width = channels.shape[:2]
    padded = np.pad(channels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    around = [
        padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
        if y or x
    ]
    low, high = np.minimum.reduce(around), np.maximum.reduce(around)
    within = (low <= channels) & (channels <= high)
    return within.all(-1) & ((low < channels) & (channels < high)).any(-1)


def _of_voc(image: Image.Image) -> bool:
    """Whether an image has VOC's palette."""
    palette = image.getpalette() if image.mode == "P" else None
    place = 3 * VOC_VOID[0]
    return palette is not None and tuple(palette[place : place + 3]) == VOC_VOID[1]
