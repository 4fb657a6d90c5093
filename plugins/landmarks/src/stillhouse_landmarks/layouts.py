"""What the points of the known mark-ups mean: mirror partners, eye corners, pupils.

Points are counted from 0. 68: iBUG's mark-up of 300-W. 98: WFLW. 29: COFW. Left and right are the
image's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any  # numbers of any precision

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import BadData, BadSetting


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One mark-up: `pairs` trade places in a mirror, all other points stay; `corners` are the outer
    eye corners; `pupils` the points of each eye whose mean is its pupil.
    """

    name: str
    points: int
    pairs: tuple[tuple[int, int], ...]
    corners: tuple[int, int]
    pupils: tuple[tuple[int, ...], tuple[int, ...]]

    def swap(self) -> tuple[int, ...]:
        """The point that each becomes in a mirror."""
        partner = dict(self.pairs) | {b: a for a, b in self.pairs}
        return tuple(partner.get(point, point) for point in range(self.points))


def _mirrored(first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Pairs of a row of points that is its own mirror image, from outside in."""
    return tuple((first + i, last - i) for i in range((last - first + 1) // 2))


def _across(left: range, right: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(left, right, strict=True))


IBUG = Layout(
    name="300-W",
    points=68,
    pairs=(
        *_mirrored(0, 16),  # jaw
        *_mirrored(17, 26),  # brows
        *_mirrored(31, 35),  # below the nose
        *_across(range(36, 42), (45, 44, 43, 42, 47, 46)),  # eyes
        *_mirrored(48, 54),  # lips outside: above, below
        *_mirrored(55, 59),
        *_mirrored(60, 64),  # lips inside: above, below
        *_mirrored(65, 67),
    ),
    corners=(36, 45),
    pupils=(tuple(range(36, 42)), tuple(range(42, 48))),
)
COFW = Layout(
    name="COFW",
    points=29,
    pairs=(
        *((0, 1), (2, 3), (4, 6), (5, 7)),  # brows
        *((8, 9), (10, 11), (12, 14), (13, 15), (16, 17)),  # eyes
        *((18, 19), (22, 23)),  # nose, corners of the mouth
    ),
    corners=(8, 9),
    pupils=((16,), (17,)),
)
WFLW = Layout(
    name="WFLW",
    points=98,
    pairs=(
        *_mirrored(0, 32),  # jaw
        *_across(range(33, 42), (46, 45, 44, 43, 42, 50, 49, 48, 47)),  # brows
        *_mirrored(55, 59),  # below the nose
        *_across(range(60, 68), (72, 71, 70, 69, 68, 75, 74, 73)),  # eyes
        *_mirrored(76, 82),  # lips outside: above, below
        *_mirrored(83, 87),
        *_mirrored(88, 92),  # lips inside: above, below
        *_mirrored(93, 95),
        (96, 97),  # pupils
    ),
    corners=(60, 72),
    pupils=((96,), (97,)),
)
NAMED: Mapping[str, Layout] = {"300w": IBUG, "wflw": WFLW, "cofw": COFW}
PAIR = re.compile(r"(\d+)-(\d+)")
APART = 0.15  # of the mean face's longer side: how much nearer another partner may be
LAYOUTS: Mapping[int, Layout] = {layout.points: layout for layout in (COFW, IBUG, WFLW)}


def layout_of(points: int, *, instead: str) -> Layout:
    """The layout with this many points; raises BadSetting saying what to give `instead`."""
    if points not in LAYOUTS:
        known = ", ".join(str(number) for number in sorted(LAYOUTS))
        raise BadSetting(f"{points} points are no known layout ({known}); {instead}")
    return LAYOUTS[points]


def partners(pairs: Sequence[str], points: int) -> tuple[int, ...]:
    """The point that each becomes in a mirror, from pairs written as "0-1"; others stay.

    Raises BadSetting for a text that is no pair, and for a point that is out of range or in two.
    """
    found = list(range(points))
    for text in pairs:
        match = PAIR.fullmatch(text.strip())
        if match is None:
            raise BadSetting(f"swap: '{text}' is no pair of points; write pairs as swap=0-1,2-3")
        for one, other in ((0, 1), (1, 0)):
            point, partner = int(match[one + 1]), int(match[other + 1])
            if not (point < points and partner < points) or point == partner:
                raise BadSetting(f"swap: {text} is no pair of two points in 0..{points - 1}")
            if found[point] != point:
                raise BadSetting(f"swap: point {point} is in two pairs; give each once")
            found[point] = partner
    return tuple(found)


def check_mirror(shapes: NDArray[Any], swap: Sequence[int], where: str) -> None:
    """Raises BadData where the mean of the shapes [N, P, 2] is not its own mirror image by `swap`:
    where another point lies nearer to a point's mirror image than its partner by `APART`.
    """
    low, high = shapes.min(axis=1, keepdims=True), shapes.max(axis=1, keepdims=True)
    side = np.maximum((high - low).max(axis=2, keepdims=True), 1e-6)
    mean = ((shapes - (low + high) / 2) / side).mean(axis=0)
    apart = np.linalg.norm((mean * [-1, 1])[:, None] - mean[None], axis=2)
    worse = apart[np.arange(len(mean)), list(swap)] - apart.min(axis=1)
    point = int(worse.argmax())
    if worse[point] > APART:
        near = int(apart[point].argmin())
        raise BadData(
            f"{where}: mirrored, point {point} (from 0) of the mean face lies near point {near}, "
            f"not near {swap[point]}: the points are in another order; set layout, or "
            "layout=own with swap, or flip=0"
        )
