import pytest

from stillhouse.errors import BadSetting
from stillhouse_landmarks.layouts import LAYOUTS, Layout, layout_of

EVERY = list(LAYOUTS.values())


@pytest.mark.parametrize("layout", EVERY, ids=lambda layout: layout.name)
def test_a_second_mirror_undoes_the_first(layout: Layout) -> None:
    swap = layout.swap()
    assert sorted(swap) == list(range(layout.points))
    assert [swap[point] for point in swap] == list(range(layout.points))
    assert len({point for pair in layout.pairs for point in pair}) == 2 * len(layout.pairs)


@pytest.mark.parametrize("layout", EVERY, ids=lambda layout: layout.name)
def test_corners_and_pupils_trade_places(layout: Layout) -> None:
    swap = layout.swap()
    assert swap[layout.corners[0]] == layout.corners[1]
    left, right = layout.pupils
    assert sorted(swap[point] for point in left) == sorted(right)


@pytest.mark.parametrize(
    ("points", "still"),
    [
        (68, {8, 27, 28, 29, 30, 33, 51, 57, 62, 66}),  # chin, bridge of the nose, lips
        (98, {16, 51, 52, 53, 54, 57, 79, 85, 90, 94}),
        (29, {20, 21, 24, 25, 26, 27, 28}),
    ],
)
def test_points_on_the_axis_stay(points: int, still: set[int]) -> None:
    swap = LAYOUTS[points].swap()
    assert {point for point, partner in enumerate(swap) if point == partner} == still


def test_some_pairs_as_published() -> None:
    assert [LAYOUTS[68].swap()[p] for p in (0, 17, 31, 37, 40, 48, 59, 60, 67)] == [
        16, 26, 35, 44, 47, 54, 55, 64, 65
    ]  # fmt: skip
    assert [LAYOUTS[98].swap()[p] for p in (0, 33, 37, 38, 41, 64, 65, 76, 87, 88, 95)] == [
        32, 46, 42, 50, 47, 68, 75, 82, 83, 92, 93
    ]  # fmt: skip


def test_an_unknown_number_of_points() -> None:
    with pytest.raises(BadSetting) as caught:
        layout_of(67, instead="give swap")
    assert str(caught.value) == "67 points are no known layout (29, 68, 98); give swap"
