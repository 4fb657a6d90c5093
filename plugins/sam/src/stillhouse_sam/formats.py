"""Masks as COCO writes them: run lengths down the columns, in numbers or packed in a string.

h, w: a picture's height and width in pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import BadData


class Rle(TypedDict):
    """COCO's compressed run lengths: size [h, w]; counts alternate between outside and inside."""

    size: list[int]
    counts: str


def encoded(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> Rle:
    """A mask [h, w] as run lengths; what is not zero is inside."""
    from pycocotools.mask import encode

    found = encode(np.asfortranarray(mask != 0).view(np.uint8))
    return {"size": [int(side) for side in mask.shape], "counts": found["counts"].decode("ascii")}


def decoded(rle: Mapping[str, Any]) -> NDArray[np.bool_]:  # Any: size, and counts in any form
    """The mask [h, w] of run lengths (counts a string, bytes or numbers). Raises BadData where they
    do not cover the picture exactly.
    """
    height, width = (int(side) for side in rle["size"])
    counts = run_lengths(rle["counts"])
    if bool((counts < 0).any()) or counts.sum() != height * width:
        raise BadData(
            f"run lengths cover {counts.sum()} pixels, not the {height} x {width} of their size"
        )
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
    place = np.arange(len(bits)) - np.repeat(starts, length)
    value = np.add.reduceat((bits & 31) << (5 * place), starts)
    value -= np.where(bits[ends] & 16, np.int64(1) << (5 * length), 0)
    value[1::2] = value[1::2].cumsum()
    value[2::2] = value[2::2].cumsum()
    return value
