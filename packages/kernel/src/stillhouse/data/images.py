"""Image files of any usual kind as 8-bit grey or RGB, within a bound of memory.

Every reader goes through `read_image` (or `load_image`, for masks), so that all domains read and
refuse the same. Pillow is imported where it is used: plugins that read images depend on it.
"""

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import BadData

if TYPE_CHECKING:
    from PIL import Image, ImageFile

# what counts as an image file, in lower case; .jfif is JPEG
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp"),
    *(".ppm", ".pgm", ".tif", ".tiff"),
)
LARGEST_PIXELS = 1 << 27  # of an image or of what it is scaled to: half a GiB in memory
# formats whose further frames are images of their own, not previews of the first
FRAMED = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")
ORIENTATION = 0x0112  # EXIF's tag: 1 is upright, 2 to 8 are mirrored or turned
FULL_16 = 65535
LEAST_16 = 1 << 14  # the brightest value of a 16-bit image that is not one of 14 bits or fewer
WHITE_IS_ZERO = 262, 0  # TIFF's tag of photometric interpretation

Mode = Literal["RGB", "L", ""]


def read_image(
    source: Path | bytes, where: str, *, mode: Mode = "RGB", annotated: bool = False
) -> "Image.Image":
    """The image in `mode`; "": grey (L) or RGB, as the file is. `where` names it in messages.

    8 bits, 1 bit, palettes, CMYK, YCbCr and HSV are converted; what is transparent shows white. 16
    bits are scaled from 0..65535, and refused where the brightest value is below 2^14 (10-, 12- or
    14-bit values would come out black). Floating values are taken as 0..1 and refused beyond.
    Other integers and other modes are refused, and files of several frames. Orientation as in
    `load_image`. Raises BadData, also for more than `LARGEST_PIXELS`.
    """
    image = _eight_bits(load_image(source, where, annotated=annotated), where)
    return image if mode in ("", image.mode) else image.convert(mode)


def load_image(source: Path | bytes, where: str, *, annotated: bool = False) -> "Image.Image":
    """The image decoded in the mode it is stored in, as for masks of ids.

    A camera's orientation tag is applied; where the image is `annotated` it is refused, because
    nothing says whether coordinates count in the stored or the turned image.
    """
    from PIL import ImageOps

    with _opened(source, where) as opened:
        turned = _turned(opened, where, annotated=annotated)
        frames = getattr(opened, "n_frames", 1) if opened.format in FRAMED else 1
        if frames > 1:
            raise BadData(f"{where}: {frames} frames; expected one image a file: save them apart")
        opened.load()
        # a TIFF is upright by now: Pillow turns it as it loads it
        return ImageOps.exif_transpose(opened) if turned else opened


def image_size(source: Path | bytes, where: str, *, annotated: bool = False) -> tuple[int, int]:
    """Width and height as `load_image` gives them, of the file's header alone."""
    with _opened(source, where) as opened:
        turned = _turned(opened, where, annotated=annotated)
        width, height = opened.size
        # Pillow gives a TIFF's size as it will be turned
        return (height, width) if turned >= 5 and opened.format != "TIFF" else (width, height)


def check_pixels(where: str, width: int, height: int) -> None:
    """Raises BadData where an image of this size, read or made, has more than `LARGEST_PIXELS`."""
    if width * height > LARGEST_PIXELS:
        raise BadData(
            f"{where}: {width} x {height} pixels, more than the {LARGEST_PIXELS:,} that are held "
            "in memory; make it smaller"
        )


def fit_square(image: "Image.Image", size: int, where: str) -> "Image.Image":
    """Scaled until its shorter side is `size`, then cut to the square in its centre.

    The rest is never computed: 1 x 60,000 pixels take no more memory than the square.
    """
    from PIL import Image

    check_pixels(where, size, size)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


@contextlib.contextmanager
def _opened(source: Path | bytes, where: str) -> "Generator[ImageFile.ImageFile]":
    """The file's header, its size checked; whatever Pillow raises meanwhile is one line."""
    from PIL import Image, UnidentifiedImageError

    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            # the bound here is our own
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(stream) as opened:
                check_pixels(where, *opened.size)
                yield opened
    except FileNotFoundError as error:
        raise BadData(f"{where}: not found; restore it") from error
    except UnidentifiedImageError as error:
        raise BadData(f"{where}: not an image of a known format; replace it") from error
    except Image.DecompressionBombError as error:
        raise BadData(
            f"{where}: more than {LARGEST_PIXELS:,} pixels, which are not held in memory; "
            "make it smaller"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise BadData(f"{where}: not a whole image ({error}); replace it") from error


def _turned(opened: "ImageFile.ImageFile", where: str, *, annotated: bool) -> int:
    """The orientation tag, 0 for upright."""
    tag = opened.getexif().get(ORIENTATION, 1)
    if tag not in range(2, 9):
        return 0
    if annotated:
        raise BadData(
            f"{where}: its camera's orientation tag ({tag}) turns or mirrors it, and coordinates "
            "would not follow; save the image upright, without the tag, as it was annotated"
        )
    return tag


def _eight_bits(image: "Image.Image", where: str) -> "Image.Image":
    """In mode L or RGB."""
    mode = image.mode
    if mode == "F":
        return _of_floats(image, where)
    if mode.startswith("I"):
        return _of_integers(image, where)
    plain = "L" if mode in ("1", "L", "LA", "La") or _grey_palette(image) else "RGB"
    if mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        return _on_white(image, plain)
    if mode in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"):
        return image.convert(plain)
    raise BadData(f"{where}: colours of mode {mode} are not read; save it as RGB")


def _grey_palette(image: "Image.Image") -> bool:
    if image.mode not in ("P", "PA"):
        return False
    colours = image.getpalette("RGB") or []
    return colours[0::3] == colours[1::3] == colours[2::3]


def _on_white(image: "Image.Image", mode: str) -> "Image.Image":
    from PIL import Image

    plain = image.convert("LA") if image.mode == "La" else image
    shown = plain if plain.mode == "RGBA" else plain.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, shown).convert(mode)


def _of_floats(image: "Image.Image", where: str) -> "Image.Image":
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:  # NaN is in no range
        raise BadData(
            f"{where}: floating values from {low:g} to {high:g}; expected 0..1: scale them, or "
            "save it with 8 bits"
        )
    return _grey(values * 255 + 0.5)


def _of_integers(image: "Image.Image", where: str) -> "Image.Image":
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    # Pillow has PNG and PGM of 16 bits in 32
    sixteen = image.mode.startswith("I;16") or getattr(image, "format", "") in ("PNG", "PPM")
    if not sixteen or low < 0 or high > FULL_16:
        raise BadData(
            f"{where}: integers of 32 bits or with a sign, from {low} to {high}, whose range "
            "nothing says; save it with 8 or 16 bits"
        )
    if 0 < high < LEAST_16:
        raise BadData(
            f"{where}: 16 bits, but no value above {high} of {FULL_16}: it would be read as "
            "nearly black; scale it to the full range, or save it with 8 bits"
        )
    tags = getattr(image, "tag_v2", {})
    if tags.get(WHITE_IS_ZERO[0]) == WHITE_IS_ZERO[1]:
        raise BadData(f"{where}: 16 bits of which 0 is white; save it with 0 as black")
    return _grey((values.astype(np.uint32) + 128) // 257)


def _grey(values: NDArray[np.generic]) -> "Image.Image":
    from PIL import Image

    return Image.fromarray(values.astype(np.uint8))
