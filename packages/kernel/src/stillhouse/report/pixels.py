"""Figures in as few bytes as a published page needs."""

import io

import numpy as np
from PIL import Image

COLOURS = 256
CLOSE = 40.0  # dB of peak signal to noise: what a palette may cost
QUALITY = 90  # of a photograph


def smaller(png: bytes) -> tuple[str, bytes]:
    """The suffix and the bytes that a PNG is published with: a PNG with a palette where that cannot
    be seen, as of plots, else (photographs) a WebP.
    """
    image = Image.open(io.BytesIO(png)).convert("RGB")
    palette = image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT)
    if _noise(image, palette.convert("RGB")) > 10 ** (-CLOSE / 10):
        return ".webp", _written(image, "WEBP", quality=QUALITY, method=6)
    return ".png", min(png, _written(palette, "PNG", optimize=True), key=len)


def _written(image: Image.Image, kind: str, **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _noise(image: Image.Image, other: Image.Image) -> float:
    """Mean squared difference, in parts of the largest."""
    gap = np.asarray(image, float) - np.asarray(other, float)
    return float(np.mean((gap / 255) ** 2))
