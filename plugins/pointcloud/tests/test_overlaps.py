"""Overlaps of boxes against areas worked by hand, and what must hold for any."""

import math
import time

import numpy as np
import pytest

from stillhouse_pointcloud.overlaps import bev_areas, bev_iou, iou_3d, shared_areas


def box(x=0.0, y=0.0, z=0.0, long=2.0, wide=2.0, high=2.0, yaw=0.0):
    return np.array([[x, y, z, long, wide, high, yaw]])


def test_a_square_and_itself_turned_by_an_eighth_share_an_octagon():
    # the regular octagon of inner radius 1: 8 (sqrt 2 - 1)
    shared = shared_areas(box(), box(yaw=math.pi / 4))[0]
    assert shared == pytest.approx(8 * (math.sqrt(2) - 1))


@pytest.mark.parametrize(
    ("other", "area"),
    [
        (box(), 4.0),
        (box(yaw=math.pi / 2), 4.0),
        (box(yaw=math.pi), 4.0),
        (box(x=1.0), 2.0),
        (box(x=1.0, y=-1.0), 1.0),
        (box(x=2.0), 0.0),
        (box(x=5.0), 0.0),
        (box(long=1.0, wide=0.5, yaw=0.3), 0.5),
        (box(long=8.0, wide=1.0), 2.0),
        # a thin strip along the diagonal: its length sqrt 8 less the two corners it does not fill
        (box(long=8.0, wide=0.1, yaw=math.pi / 4), 0.1 * (math.sqrt(8) - 0.05)),
        # a diamond of half diagonal sqrt 2 whose left corner reaches 0.5 into the square
        (box(x=0.5 + math.sqrt(2), yaw=math.pi / 4), 0.25),
    ],
)
def test_areas_by_hand(other, area):
    assert shared_areas(box(), other)[0] == pytest.approx(area, abs=1e-9)
    assert shared_areas(other, box())[0] == pytest.approx(area, abs=1e-9)
    assert bev_areas(box(), other)[0, 0] == pytest.approx(area, abs=1e-9)


def test_ious_by_hand():
    assert bev_iou(box(), box(x=1.0))[0, 0] == pytest.approx(1 / 3)
    # half as high a place in common: 4 * 1 of 8 + 8 - 4
    assert iou_3d(box(), box(z=1.0))[0, 0] == pytest.approx(1 / 3)
    assert iou_3d(box(), box(z=2.0))[0, 0] == 0
    assert bev_iou(box(), box(z=9.0))[0, 0] == pytest.approx(1)


def drawn(count, seed):
    rng = np.random.default_rng(seed)
    place, size = rng.uniform(-4, 4, (count, 3)), rng.uniform(0.3, 5, (count, 3))
    return np.concatenate([place, size, rng.uniform(-7, 7, (count, 1))], axis=1)


def test_areas_agree_with_counting_points():
    a, b = drawn(30, 0), drawn(30, 1)
    b[:, :2] = a[:, :2] + np.random.default_rng(2).uniform(-1.5, 1.5, (30, 2))
    steps = (np.arange(400) + 0.5) / 400 - 0.5
    for one, other, area in zip(a, b, shared_areas(a, b), strict=True):
        u, v = (axis.ravel() for axis in np.meshgrid(steps * one[3], steps * one[4]))
        x = one[0] + u * np.cos(one[6]) - v * np.sin(one[6]) - other[0]
        y = one[1] + u * np.sin(one[6]) + v * np.cos(one[6]) - other[1]
        long = np.abs(x * np.cos(other[6]) + y * np.sin(other[6])) < other[3] / 2
        wide = np.abs(y * np.cos(other[6]) - x * np.sin(other[6])) < other[4] / 2
        assert area == pytest.approx((long & wide).mean() * one[3] * one[4], abs=0.05)


def test_a_box_shares_all_of_itself_wherever_it_stands_and_whatever_its_heading():
    boxes = drawn(500, 3)
    boxes[:, :2] *= 20
    assert shared_areas(boxes, boxes) == pytest.approx(boxes[:, 3] * boxes[:, 4])
    again = boxes + np.array([0, 0, 0, 0, 0, 0, math.pi])
    assert shared_areas(boxes, again) == pytest.approx(boxes[:, 3] * boxes[:, 4])


def test_the_boxes_of_nineteen_frames_take_less_than_two_seconds():
    start = time.process_time()
    for seed in range(19):
        found, truth = drawn(100, seed), drawn(20, 100 + seed)
        iou_3d(truth, found)
        bev_iou(truth, found)
        bev_iou(found, found)
    assert time.process_time() - start < 2
