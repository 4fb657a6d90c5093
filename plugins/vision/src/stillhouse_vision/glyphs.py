"""Built-in data: letters and digits in many fonts, images from "the web" for the handwritten
digits.
"""

import functools
import string
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

SYMBOLS = string.digits + string.ascii_uppercase  # the letters are alien to a task of digits
FONTS = (
    *("Sans", "Sans-Bold", "Sans-Oblique", "SansMono", "SansMono-Bold"),
    *("Serif", "Serif-Bold", "Serif-Italic"),
)
COPIES = 6  # of each symbol in each font
SIDE = 8  # pixels, as the digits
CANVAS = 48
LARGEST_TURN = 20.0  # degrees
LARGEST_BLUR = 1.5  # pixels of the canvas, a radius
INVERTED = 0.15
SEED = 0


@functools.cache  # a run reads it several times
def glyphs() -> Mapping[str, NDArray[np.uint8] | NDArray[np.bool_]]:
    """uint8 images [N, 1, 8, 8] of 0-9 and A-Z, and whether each is of a digit (`vocabulary`).

    Rendered in matplotlib's fonts, turned, blurred, cut to their own box and stretched from black
    to white as the scans are, 15 % of them inverted. No label tells which digit.
    """
    from matplotlib import get_data_path

    folder = Path(get_data_path()) / "fonts" / "ttf"
    rng = np.random.default_rng(SEED)
    images: list[NDArray[np.uint8]] = []
    for name in FONTS:
        font = ImageFont.truetype(str(folder / f"DejaVu{name}.ttf"), CANVAS // 2)
        for symbol in SYMBOLS:
            drawn = _drawn(symbol, font)
            images += [_changed(drawn, rng) for _ in range(COPIES)]
    digit = np.repeat([symbol in string.digits for symbol in SYMBOLS], COPIES)
    return {
        "images": np.stack(images)[:, None],
        "vocabulary": np.tile(digit, len(FONTS)),
    }


def _drawn(symbol: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    canvas = Image.new("L", (CANVAS, CANVAS))
    middle = (CANVAS / 2, CANVAS / 2)
    ImageDraw.Draw(canvas).text(middle, symbol, fill=255, font=font, anchor="mm")
    return canvas


def _changed(drawn: Image.Image, rng: np.random.Generator) -> NDArray[np.uint8]:
    turned = drawn.rotate(
        rng.uniform(-LARGEST_TURN, LARGEST_TURN), resample=Image.Resampling.BILINEAR
    )
    blurred = turned.filter(ImageFilter.GaussianBlur(rng.uniform(0, LARGEST_BLUR)))
    box = turned.getbbox()
    assert box is not None
    side = max(box[2] - box[0], box[3] - box[1])
    left, top = (box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2
    square = blurred.crop((left, top, left + side, top + side))
    # from black to white, as the scans are
    small = np.array(ImageOps.autocontrast(square.resize((SIDE, SIDE), Image.Resampling.BOX)))
    return 255 - small if rng.uniform() < INVERTED else small
