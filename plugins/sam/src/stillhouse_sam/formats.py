"""Masks as COCO writes them (run lengths down the columns, in numbers or packed in a string;
polygons), and an image with its objects as every reader gives it.

h, w: an image's height and width in pixels. An image with a camera's orientation tag is refused:
annotations do not say whether they count before or after it.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stillhouse.data.images import read_image
from stillhouse.errors import BadData

Json = Mapping[str, Any]  # Any: JSON
OUTSIDE = 0.05  # of an image's longer side: how far a polygon may reach beyond it
LONGEST = 7  # characters that a run length of 32 bits takes in COCO's compressed form


class Rle(TypedDict):
    """COCO's compressed run lengths: size [h, w]; counts alternate between outside and inside."""

    size: list[int]
    counts: str


class Object(TypedDict):
    """An object of an image; area is in pixels. A crowd is a group that was outlined as one."""

    rle: Rle
    area: int
    crowd: int
    category: str


@dataclass(frozen=True, kw_only=True)
class Photo:
    """An image that is not decoded yet, and how its objects are read. `where` names it in
    messages; `place` is its place among others (COCO's id; its row elsewhere); `files` are those it
    is read from, the image first.
    """

    where: str
    name: str
    place: int
    image: Callable[[], Image.Image]  # in RGB
    objects: Callable[[int, int], list[Object]]  # of the image's height and width
    labelled: bool = True
    licence: int | str | None = None
    licence_name: str = ""
    credit: str = ""
    files: tuple[Path, ...] = ()

    def read(self) -> tuple[Image.Image, list[Object]]:
        """The image in RGB and all its objects; BadData names what cannot be used."""
        image = self.image()
        return image, self.objects(image.height, image.width)

    def annotations(self, height: int, width: int, objects: Sequence[Object]) -> str:
        """All that is known of it, as JSON."""
        known = {
            "name": self.name,
            "height": height,
            "width": width,
            "licence": self.licence,
            "licence_name": self.licence_name,
            "credit": self.credit,
            "objects": list(objects),
        }
        return json.dumps(known)


def encoded(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> Rle:
    """A mask [h, w] as run lengths; what is not zero is inside."""
    from pycocotools.mask import encode

    # Any: bytes, whatever its types say
    found: Any = encode(np.asfortranarray(mask != 0).view(np.uint8))["counts"]
    return {"size": [int(side) for side in mask.shape], "counts": str(found, "ascii")}


def decoded(rle: Mapping[str, Any]) -> NDArray[np.bool_]:  # Any: size, and counts in any form
    """The mask [h, w] of run lengths (counts a string, bytes or numbers). Raises BadData where they
    do not cover the image exactly.
    """
    height, width = (int(side) for side in rle["size"])
    counts = _covering(run_lengths(rle["counts"]), height, width)
    inside = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, counts).reshape(width, height).T)


def run_lengths(counts: str | bytes | Sequence[int]) -> NDArray[np.int64]:
    """Run lengths as numbers. In a string each takes characters of 6 bits above '0': 5 of the value
    (lowest first, in two's complement) and one that says that more follow; from the fourth on it is
    the difference to the last but one.
    """
    if not isinstance(counts, str | bytes):
        return np.asarray(counts, dtype=np.int64)
    raw = counts.encode("latin-1", "replace") if isinstance(counts, str) else counts
    bits = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    if not len(bits):
        return bits
    if bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        raise BadData("counts are no run lengths in COCO's compressed form")
    ends = (bits & 32) == 0
    starts = np.flatnonzero(np.concatenate([[True], ends[:-1]]))
    length = np.diff(np.append(starts, len(bits)))
    if length.max() > LONGEST:
        raise BadData("counts are no run lengths in COCO's compressed form")
    place = np.arange(len(bits)) - np.repeat(starts, length)
    value = np.add.reduceat((bits & 31) << (5 * place), starts)
    value -= np.where(bits[ends] & 16, np.int64(1) << (5 * length), 0)
    value[1::2] = value[1::2].cumsum()
    value[2::2] = value[2::2].cumsum()
    return value


def _covering(counts: NDArray[np.int64], height: int, width: int) -> NDArray[np.int64]:
    if bool((counts < 0).any()) or counts.sum() != height * width:
        raise BadData(
            f"run lengths cover {counts.sum()} pixels, not the {width} x {height} of their size"
        )
    return counts


def as_object(
    where: str,
    segmentation: object,
    height: int,
    width: int,
    *,
    crowd: bool = False,
    category: str = "",
) -> Object:
    """An object of an image from its segmentation: COCO's polygons, numbers or compressed string.
    BadData, with `where`, for one that is none or of another image's size.
    """
    try:
        if isinstance(segmentation, list):
            polygons = cast("list[object]", segmentation)
            rle = _of_polygons(polygons, height, width)
        elif isinstance(segmentation, dict):
            rle = _of_lengths(cast("dict[str, Any]", segmentation), height, width)
        else:
            found = type(segmentation).__name__
            raise BadData(f"segmentation is a {found}; expected polygons or run lengths")
    except BadData as error:
        raise BadData(f"{where}: {error}; correct it") from error
    area = int(run_lengths(rle["counts"])[1::2].sum())
    return {"rle": rle, "area": area, "crowd": int(crowd), "category": category}


def _of_polygons(polygons: Sequence[object], height: int, width: int) -> Rle:
    from pycocotools.mask import frPyObjects, merge

    if not polygons:
        raise BadData("no polygon")
    for number, polygon in enumerate(polygons, 1):
        points = cast("list[Any]", polygon) if isinstance(polygon, list) else []
        if len(points) < 6 or len(points) % 2:
            raise BadData(
                f"polygon {number} has {len(points)} numbers; expected x and y of at least 3 points"
            )
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in points):
            raise BadData(f"polygon {number} has a coordinate that is no finite number")
        _check_inside(number, np.asarray(points, dtype=np.float64), height, width)
    parts: Any = frPyObjects(cast("Any", polygons), height, width)  # Any: its types know one form
    merged: Any = merge(parts)
    return {"size": [height, width], "counts": str(merged["counts"], "ascii")}


def _check_inside(number: int, points: NDArray[np.float64], height: int, width: int) -> None:
    beyond = OUTSIDE * max(height, width)
    for axis, length, values in (("x", width, points[::2]), ("y", height, points[1::2])):
        low, high = float(values.min()), float(values.max())
        if low < -beyond or high > length + beyond:
            raise BadData(
                f"polygon {number} reaches from {axis} {low:g} to {high:g}, far outside the "
                f"{width} x {height} pixels of its image, as if drawn on one of another size"
            )


def _of_lengths(rle: Mapping[str, Any], height: int, width: int) -> Rle:  # Any: JSON
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width]:
        raise BadData(f"run lengths of size {size}; the image's is {[height, width]}")
    if isinstance(counts, list):
        numbers = cast("list[object]", counts)
        if not all(type(number) is int for number in numbers):
            raise BadData("counts are not all whole numbers")
        _covering(np.asarray(numbers, dtype=np.int64), height, width)
        return encoded(decoded(rle))
    if not isinstance(counts, str):
        raise BadData("run lengths without counts")
    _covering(run_lengths(counts), height, width)
    return {"size": [height, width], "counts": counts}


def read_annotated(path: Path) -> Image.Image:
    """An annotated image's file in RGB with 8 bits (`read_image`)."""
    return read_image(path, str(path), annotated=True)


def read_json(path: Path) -> Any:  # Any: JSON
    """What a JSON file holds."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise BadData(f"{path}: cannot be read as JSON ({error}); get it again") from error


def read_sized(path: Path, where: str, height: object, width: object) -> Image.Image:
    """An image in RGB of the height and width that `where` records, as far as it does."""
    image = read_annotated(path)
    expected = (width or image.width, height or image.height)
    if image.size != expected:
        found = f"{image.width} x {image.height}"
        raise BadData(
            f"{path}: {found} pixels, but {expected[0]} x {expected[1]} in {where}; correct it"
        )
    return image


def of_mask(mask: NDArray[np.bool_], *, crowd: bool = False, category: str = "") -> Object:
    """The object of a mask [h, w]."""
    area = int(mask.sum())
    return {"rle": encoded(mask), "area": area, "crowd": int(crowd), "category": category}


Value = TypeVar("Value", int, str)


def field(where: str, record: Json, name: str, kind: type[Value]) -> Value:
    """A field of a JSON record; BadData where it lacks or is not of that kind."""
    value = record.get(name)
    if not isinstance(value, kind):
        raise BadData(f"{where}: {name} is {value!r}; expected {_KINDS[kind]}")
    return value


_KINDS = {int: "a whole number", str: "text"}


def records(where: str, content: object, name: str) -> list[Json]:
    """A list of records in JSON; BadData where there is none."""
    whole = cast("Json", content) if isinstance(content, dict) else {}
    rows = whole.get(name)
    if not isinstance(rows, list):
        raise BadData(f"{where}: there is no list '{name}' in it; get it again")
    found = cast("list[object]", rows)
    if not all(isinstance(row, dict) for row in found):
        raise BadData(f"{where}: not every entry of '{name}' is a record; get it again")
    return cast("list[Json]", found)
