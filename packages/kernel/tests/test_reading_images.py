"""Images of every kind: the right grey or RGB values, or one line with the file's name."""

import io
import resource
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from stillhouse.data.images import (
    LARGEST_PIXELS,
    check_pixels,
    fit_square,
    image_size,
    load_image,
    read_image,
)
from stillhouse.errors import BadData


def saved(image: Image.Image, kind: str = "PNG", **kwargs: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **kwargs)
    return stream.getvalue()


def pixels(content: bytes, mode: Any = "") -> list[Any]:
    return np.asarray(read_image(content, "a", mode=mode)).tolist()


def deep(values: list[int]) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=np.uint16))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_from_their_whole_range(kind: str) -> None:
    content = saved(deep([0, 128, 129, 257, 32768, 65535]), kind)
    assert pixels(content) == [[0, 0, 1, 1, 128, 255]]
    assert pixels(content, "RGB")[0][4] == [128, 128, 128]


def test_a_pgm_of_sixteen_bits_is_scaled_alike() -> None:
    content = b"P5 3 1 65535\n" + struct.pack(">3H", 0, 32768, 65535)
    assert pixels(content) == [[0, 128, 255]]


def test_an_8_bit_image_stored_in_16_comes_back_as_it_was() -> None:
    grey = np.arange(256)
    assert pixels(saved(deep((grey * 257).tolist()))) == [grey.tolist()]


@pytest.mark.parametrize("highest", [255, 1023, 4095, 16383])
def test_shallow_values_in_16_bits_are_refused(highest: int) -> None:
    with pytest.raises(BadData) as caught:
        read_image(saved(deep([0, highest])), "x/scan.png")
    assert str(caught.value) == (
        f"x/scan.png: 16 bits, but no value above {highest} of 65535: it would be read as nearly "
        "black; scale it to the full range, or save it with 8 bits"
    )


def test_sixteen_bits_that_are_all_black_stay_black() -> None:
    assert pixels(saved(deep([0, 0]))) == [[0, 0]]


def test_floats_of_0_to_1_are_scaled_and_others_refused() -> None:
    def floats(*values: float) -> bytes:
        return saved(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")

    assert pixels(floats(0, 0.5, 1)) == [[0, 128, 255]]
    for low, high in ((0.0, 255.0), (-0.25, 1.0), (0.0, float("nan"))):
        with pytest.raises(BadData, match=r"^a: floating values from .*; expected 0..1: scale"):
            read_image(floats(low, high), "a")


@pytest.mark.parametrize("dtype", [np.int32, np.int16])
def test_integers_of_an_unknown_range_are_refused(dtype: Any) -> None:
    content = saved(Image.fromarray(np.array([[0, 3000]], dtype=np.int32)), "TIFF")
    if dtype is np.int16:
        content = signed_16()
    with pytest.raises(BadData, match=r"^a: integers of 32 bits or with a sign, from 0 to 3000"):
        read_image(content, "a")


def signed_16() -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[339] = 2  # sample format: signed
    return saved(deep([0, 3000]), "TIFF", tiffinfo=tags)


def test_palettes_bits_and_print_colours_are_converted() -> None:
    red = Image.new("RGB", (2, 1), (255, 0, 0))
    assert pixels(saved(red.quantize(4))) == [[[255, 0, 0]] * 2]
    assert pixels(saved(Image.new("1", (1, 1), 1))) == [[255]]
    cmyk = np.asarray(read_image(saved(red.convert("CMYK"), "TIFF"), "a"))
    assert cmyk[0, 0].tolist() == [255, 0, 0]
    with pytest.raises(BadData, match="^a: colours of mode LAB are not read; save it as RGB"):
        read_image(saved(Image.new("LAB", (1, 1)), "TIFF"), "a")


def test_what_is_transparent_shows_white() -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (200, 10, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    found = pixels(saved(image))
    assert found[0][:2] == [[255, 255, 255], [200, 10, 0]]
    assert found[0][2] == [127, 127, 127]
    assert pixels(saved(image.convert("LA")))[0][0] == 255
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 0, 0])
    assert pixels(saved(palette, transparency=0)) == [[[255, 255, 255]]]
    palette.putpalette([9, 9, 9])
    assert pixels(saved(palette)) == [[9]]
    key = Image.new("L", (2, 1), 7)
    key.putpixel((1, 0), 9)
    assert pixels(saved(key, transparency=7)) == [[255, 9]]


def upright(kind: str, tag: int) -> bytes:
    """Red left, blue right, with an orientation tag."""
    image = Image.new("RGB", (32, 16), (255, 0, 0))
    image.paste((0, 0, 255), (16, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = tag
    return saved(image, kind, exif=exif)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_camera_orientation_is_applied_where_nothing_is_annotated(kind: str) -> None:
    image = read_image(upright(kind, 6), "a")  # turned by 90 degrees clockwise
    assert image.size == image_size(upright(kind, 6), "a") == (16, 32)
    assert image_size(upright(kind, 3), "a") == (32, 16)
    array = np.asarray(image).astype(int)
    assert array[4, 8, 0] > 200 > 60 > array[4, 8, 2]
    assert array[28, 8, 2] > 200 > 60 > array[28, 8, 0]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("read", [read_image, load_image, image_size])
def test_and_refused_where_coordinates_would_not_follow(read: Any, kind: str) -> None:
    with pytest.raises(BadData, match=r"^a: its camera's orientation tag \(6\) turns or mirrors"):
        read(upright(kind, 6), "a", annotated=True)
    read(upright(kind, 1), "a", annotated=True)


def test_a_file_of_several_frames_is_refused_and_a_phones_preview_is_not() -> None:
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (10, 200)]
    for kind in ("GIF", "TIFF", "WEBP"):
        content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(BadData, match=r"^a: 2 frames; expected one image a file"):
            read_image(content, "a")
    mpo = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert read_image(mpo, "a").size == (4, 4)
    assert read_image(saved(frames[0], "GIF"), "a").getpixel((0, 0)) == (10, 0, 0)


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises so many pixels, and which has none."""
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_what_would_be_decoded_is_bounded_by_the_header() -> None:
    with pytest.raises(BadData, match=r"^a: 20000 x 8000 pixels, more than the 134,217,728 that"):
        read_image(huge_png(20000, 8000), "a")
    with pytest.raises(BadData, match=r"^a: more than 134,217,728 pixels"):
        read_image(huge_png(60000, 60000), "a")
    check_pixels("a", LARGEST_PIXELS, 1)


def test_a_line_of_pixels_is_fitted_without_the_image_in_between() -> None:
    image = Image.new("RGB", (1, 60_000), (9, 8, 7))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fitted = fit_square(image, 512, "a")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB
    assert fitted.size == (512, 512)
    assert fitted.getpixel((500, 3)) == (9, 8, 7)
    with pytest.raises(BadData, match=r"^a: 100000 x 100000 pixels, more than"):
        fit_square(image, 100_000, "a")


@pytest.mark.parametrize("size", [(64, 64), (640, 427), (37, 91), (91, 37), (500, 33)])
def test_fitting_is_scaling_and_then_cutting(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, side = Image.fromarray(noise), 32
    width, height = (max(side, round(s * side / min(size))) for s in size)
    whole = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    expected = np.asarray(whole.crop((left, top, left + side, top + side))).astype(int)
    assert np.abs(np.asarray(fit_square(image, side, "a")) - expected).max() <= 1


def test_files_that_are_none(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = saved(Image.fromarray(noise), "JPEG")
    with pytest.raises(BadData, match=r"^a: not a whole image \(.*\); replace it$"):
        read_image(content[: len(content) // 2], "a")
    with pytest.raises(BadData, match="^a: not an image of a known format; replace it$"):
        read_image(b"junk", "a")
    with pytest.raises(BadData, match=r"gone.png: not found; restore it$"):
        read_image(tmp_path / "gone.png", str(tmp_path / "gone.png"))


def test_masks_keep_their_own_values() -> None:
    mask = Image.fromarray(np.array([[0, 3]], dtype=np.uint8)).convert("P")
    assert np.asarray(load_image(saved(mask), "a")).tolist() == [[0, 3]]
    assert np.asarray(load_image(saved(deep([0, 300])), "a")).tolist() == [[0, 300]]
