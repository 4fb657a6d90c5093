"""Ray casting by hand, and what the rendered streets promise."""

import math

import numpy as np
import pytest

from stillhouse.work import Work
from stillhouse_pointcloud.boxes import inside
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.raycast import Part, cast, grid, ray_box, ray_cylinder, ray_plane
from stillhouse_pointcloud.samples import (
    FOCAL,
    MIDDLE,
    SMALL_LIDAR,
    SMALL_STREET,
    difficulties,
    render,
    scenes,
)

AHEAD = np.array([[1.0, 0.0, 0.0]])
DOWN = np.array([[math.cos(math.pi / 6), 0.0, -0.5]])


def test_a_plane_by_hand():
    assert ray_plane(DOWN, -1.5)[0] == pytest.approx(3.0)
    assert np.isinf(ray_plane(-DOWN, -1.5)[0])


def test_a_box_by_hand():
    size = np.array([2.0, 4.0, 2.0])
    far, cosine = ray_box(AHEAD, np.array([10.0, 0.0, 0.0]), size, 0.0)
    assert (far[0], cosine[0]) == (pytest.approx(9.0), pytest.approx(1.0))
    # turned by a quarter its long side lies along the ray
    far, _ = ray_box(AHEAD, np.array([10.0, 0.0, 0.0]), size, math.pi / 2)
    assert far[0] == pytest.approx(8.0)
    far, _ = ray_box(AHEAD, np.array([10.0, 2.5, 0.0]), size, 0.0)
    assert np.isinf(far[0])


def test_a_cylinder_by_hand():
    far, cosine = ray_cylinder(AHEAD, np.array([5.0, 0.0, 0.0]), 1.0, 2.0)
    assert (far[0], cosine[0]) == (pytest.approx(4.0), pytest.approx(1.0))
    far, cosine = ray_cylinder(AHEAD, np.array([5.0, 0.6, 0.0]), 1.0, 2.0)
    assert (far[0], cosine[0]) == (pytest.approx(4.2), pytest.approx(0.8))
    assert np.isinf(ray_cylinder(AHEAD, np.array([5.0, 0.0, 3.0]), 1.0, 2.0)[0][0])


def test_the_nearest_thing_hides_what_is_behind():
    rays = grid(0.0, -10.0, 3, 2.0, 1.0)
    size = np.array([1.0, 8.0, 8.0])
    near, behind = (
        Part(kind="box", centre=np.array([x, 0.0, 0.0]), size=size, yaw=0.0, owner=i, shade=0.5)
        for i, x in enumerate((5.0, 9.0))
    )
    hits = cast(rays, [behind, near], ground=-1.7, ground_shade=0.2, owners=2)
    assert set(np.unique(hits.owner)) == {0}
    assert hits.nearest.tolist() == [15, 0]
    assert hits.alone.tolist() == [15, 15]


def test_the_same_seed_gives_the_same_scenes_and_a_scene_is_its_own():
    given = {"lidar": SMALL_LIDAR, "street": SMALL_STREET}
    two, three = render(2, seed=5, **given), render(3, seed=5, **given)
    end = two["points_offsets"][-1]
    assert np.array_equal(two["points"], three["points"][:end])
    assert np.array_equal(two["boxes"], three["boxes"][: two["boxes_offsets"][-1]])
    other = render(2, seed=6, **given)
    assert not np.array_equal(two["points"][:100], other["points"][:100])


def test_every_box_of_a_scene_holds_points():
    made = render(6, seed=1, lidar=SMALL_LIDAR, street=SMALL_STREET)
    for i in range(6):
        points = made["points"][slice(*made["points_offsets"][i : i + 2])]
        boxes = made["boxes"][slice(*made["boxes_offsets"][i : i + 2])]
        for box in boxes.astype(np.float64):
            grown = box + np.array([0, 0, 0, 0.3, 0.3, 0.3, 0])  # the noise of the distances
            assert inside(points.astype(np.float64), grown).any()


def test_the_reader_takes_the_scenes():
    ports = ReadKitti()({"source": scenes()}, work=Work.seeded(0))
    assert set(ports) == {"train", "validation", "test"}
    test = ports["test"]
    assert len(test["points"]) == 24
    assert test["points"].values.shape[1] == 4


def board(ahead, left=0.0, width=0.02):
    """A thin one of 1.5 m across the camera's axis."""
    return [ahead, left, 0.0, 0.02, width, 1.5, 0.0]


def test_difficulties_by_height_and_hidden_part_by_hand():
    # FOCAL x 1.5 m / metres ahead: 54 pixels of height, 36, 21; easy is over 40, the others over 25
    boxes = np.array([board(20), board(30), board(50)])
    assert difficulties(boxes, np.zeros(3)).tolist() == [0, 1, -1]
    near = np.array([board(20)] * 6)
    hidden = np.array([0.15, 0.16, 0.5, 0.51, 0.8, 0.81])
    assert difficulties(near, hidden).tolist() == [0, 1, 1, 2, 2, -1]
    assert difficulties(np.zeros((0, 7)), np.zeros(0)).tolist() == []


@pytest.mark.parametrize(("cut", "level"), [(0.1, 0), (0.2, 1), (0.4, 2), (0.6, -1)])
@pytest.mark.parametrize("side", [-1, 1])
def test_difficulties_by_the_part_beyond_the_image_by_hand(cut, level, side):
    pixels = FOCAL * 4 / 20  # of a board of 4 m, 20 m ahead
    edge = 0 if side > 0 else 1242
    column = edge + side * pixels * (0.5 - cut)  # of its middle
    box = board(20, (MIDDLE[0] - column) * 20 / FOCAL, width=4)
    assert difficulties(np.array([box]), np.zeros(1)).tolist() == [level]
