"""What a picture is published as."""

import io

import numpy as np
from PIL import Image

from stillhouse.report.pixels import smaller


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_a_picture_of_few_colours_stays_what_it_is() -> None:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (8, 3), np.uint8)[draw.integers(0, 8, (64, 64))]
    suffix, data = smaller(png(pixels))
    assert suffix == ".png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), pixels)
    assert len(data) < len(png(pixels)) / 2


def test_a_picture_of_many_colours_is_no_palette() -> None:
    rows, columns = np.mgrid[0:256, 0:256]
    pixels = np.stack([rows, columns, (rows * 3 + columns * 5) % 256], -1).astype(np.uint8)
    suffix, data = smaller(png(pixels))
    assert suffix == ".webp"
    assert Image.open(io.BytesIO(data)).size == (256, 256)
