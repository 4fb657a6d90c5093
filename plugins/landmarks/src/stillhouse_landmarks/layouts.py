"""What the points of the known mark-ups mean: mirror partners, eye corners, pupils.

Points are counted from 0. 68: iBUG's mark-up of 300-W. 98: WFLW. 29: COFW. Left and right are the
picture's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from stillhouse.errors import BadSetting


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
LAYOUTS: Mapping[int, Layout] = {layout.points: layout for layout in (COFW, IBUG, WFLW)}


def layout_of(points: int, *, instead: str) -> Layout:
    """The layout with this many points; raises BadSetting saying what to give `instead`."""
    if points not in LAYOUTS:
        known = ", ".join(str(number) for number in sorted(LAYOUTS))
        raise BadSetting(f"{points} points are no known layout ({known}); {instead}")
    return LAYOUTS[points]
