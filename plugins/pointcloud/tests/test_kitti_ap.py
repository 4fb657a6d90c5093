"""KITTI's AP: cases small enough to count by hand, and a detector from end to end."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.work import Work
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.detectors import SMALL_GRID, Found, PillarGrid, model
from stillhouse_pointcloud.metrics import KittiAp, Scene, average_precision, found_scenes
from stillhouse_pointcloud.samples import scenes as rendered

CAR = (3.9, 1.6, 1.5, 0.0)
EASY, MODERATE, HARD = 0, 1, 2


def row(x, y=0.0):
    return [x, y, -1.0, *CAR]


def scene(truth, found, scores, *, difficulty=None, ignored=(), heights=None, predicted=None):
    """Cars at places (x or (x, y)), and cars found."""

    def boxes(places):
        return np.array([row(*np.atleast_1d(place)) for place in places], dtype=float).reshape(
            -1, 7
        )

    count = len(found)
    return Scene(
        boxes=boxes(truth),
        labels=np.zeros(len(truth), dtype=np.int64),
        difficulty=np.array(difficulty or [0] * len(truth), dtype=np.int64),
        ignored=boxes(ignored),
        ignored_labels=np.zeros(len(ignored), dtype=np.int64),
        found=boxes(found),
        scores=np.array(scores, dtype=float),
        predicted=np.array(predicted or [0] * count, dtype=np.int64),
        heights=np.array(heights or [100] * count, dtype=float),
    )


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_fewer_than_forty_one_cars_all_found_give_less_than_one(count):
    places = [10.0 * i for i in range(count)]
    given = [scene(places, places, np.linspace(0.9, 0.5, count))]
    assert average_precision(given, 0, EASY) == pytest.approx((count - 1) / 40)
    # of recalls 0, 1/10, ..., those whose place in the curve has a threshold
    reached = len(range(0, count, 4))
    assert average_precision(given, 0, EASY, points=11) == pytest.approx(reached / 11)
    for points in (40, 11):
        exact = average_precision(given, 0, EASY, points=points, sampling="exact")
        assert exact == pytest.approx(1.0)


@pytest.mark.parametrize("count", [41, 100, 240])
def test_enough_cars_all_found_give_one(count):
    places = [10.0 * i for i in range(count)]
    given = [scene(places, places, np.linspace(0.9, 0.5, count))]
    assert average_precision(given, 0, EASY) == pytest.approx(1.0)
    assert average_precision(given, 0, EASY, points=11) == pytest.approx(1.0)


def test_a_precision_curve_by_hand():
    # by falling score: right, wrong, right, right; of four cars one is never found
    given = [scene([0, 10, 20, 30], [0, 5, 10, 20], [0.9, 0.8, 0.7, 0.6])]
    # thresholds 0.9, 0.7, 0.6: precisions 1, 2/3, 3/4, not rising 1, 3/4, 3/4
    assert average_precision(given, 0, EASY) == pytest.approx(2 * 0.75 / 40)
    # recalls up to 1/4 at precision 1, up to 3/4 at 3/4, none above
    exact = average_precision(given, 0, EASY, sampling="exact")
    assert exact == pytest.approx((10 * 1 + 20 * 0.75) / 40)


def test_a_second_box_on_a_car_is_wrong():
    once = scene([0, 10], [0, 10], [0.9, 0.8])
    twice = scene([0, 10], [0, 0.1, 10], [0.9, 0.85, 0.8])
    assert average_precision([once], 0, EASY, sampling="exact") == pytest.approx(1)
    found = average_precision([twice], 0, EASY, sampling="exact")
    assert found == pytest.approx((20 * 1 + 20 * 2 / 3) / 40)


def test_an_overlap_just_below_the_limit_is_none():
    # shifted by s of a length l, a car shares (l - s) / (l + s)
    limit = 3.9 * (1 - 0.7) / (1 + 0.7)
    near, far = scene([0], [limit - 0.01], [0.9]), scene([0], [limit + 0.01], [0.9])
    assert average_precision([near], 0, EASY, sampling="exact") == pytest.approx(1)
    assert average_precision([far], 0, EASY, sampling="exact") == 0
    assert average_precision([far], 0, EASY, sampling="exact", overlap=0.5) == pytest.approx(1)


def test_harder_cars_neither_count_nor_make_a_box_wrong():
    given = [scene([0, 10, 20], [0, 10, 20], [0.7, 0.8, 0.9], difficulty=[0, 1, -1])]
    for level in (EASY, MODERATE):
        assert average_precision(given, 0, level, sampling="exact") == pytest.approx(1)
    missed = [scene([0, 10], [0], [0.9], difficulty=[0, 1])]
    assert average_precision(missed, 0, EASY, sampling="exact") == pytest.approx(1)
    assert average_precision(missed, 0, MODERATE, sampling="exact") == pytest.approx(0.5)


def test_a_van_takes_a_box_away_and_an_empty_place_does_not():
    van, none = scene([0], [0, 10], [0.7, 0.9], ignored=[10]), scene([0], [0, 10], [0.7, 0.9])
    assert average_precision([van], 0, EASY, sampling="exact") == pytest.approx(1)
    assert average_precision([none], 0, EASY, sampling="exact") == pytest.approx(0.5)
    assert average_precision(
        [replace(van, ignored_labels=np.array([1]))], 0, EASY, sampling="exact"
    ) == pytest.approx(0.5)


def test_a_box_lower_than_the_least_height_is_neither_right_nor_wrong():
    # 30 pixels: too low for easy (40), high enough for moderate (25)
    given = [scene([0], [0, 10], [0.7, 0.9], heights=[100, 30])]
    assert average_precision(given, 0, EASY, sampling="exact") == pytest.approx(1)
    assert average_precision(given, 0, MODERATE, sampling="exact") == pytest.approx(0.5)
    low = [scene([0], [0], [0.9], heights=[30])]
    assert average_precision(low, 0, EASY, sampling="exact") == 0


def test_a_low_box_of_another_class_takes_a_car_away():
    # as the development kit: the height is asked before the class
    given = [scene([0], [0, 0], [0.7, 0.9], heights=[100, 30], predicted=[0, 1])]
    assert average_precision(given, 0, EASY, sampling="exact") == 0
    assert average_precision(given, 0, MODERATE, sampling="exact") == pytest.approx(1)
    # it is no mistake where there is no car
    given = [scene([0], [0, 10], [0.7, 0.9], heights=[100, 30], predicted=[0, 1])]
    assert average_precision(given, 0, EASY, sampling="exact") == pytest.approx(1)


def test_classes_do_not_mix_and_a_class_without_truth_has_no_score():
    given = [scene([0, 10], [0, 10], [0.9, 0.8], predicted=[0, 1])]
    assert average_precision(given, 0, EASY, sampling="exact") == pytest.approx(0.5)
    assert average_precision(given, 1, EASY) is None
    scores = KittiAp(sampling="exact").of(given)
    assert set(scores) == {
        f"{who}_{kind}_{level}_exact_ap"
        for who in ("car", "mean")
        for kind in ("bev", "3d")
        for level in ("easy", "moderate", "hard")
    }
    assert scores["mean_3d_moderate_exact_ap"] == pytest.approx(0.5)
    with pytest.raises(BadData, match="no true box that counts"):
        KittiAp().of([scene([], [0], [0.9])])


def test_a_box_too_high_is_right_from_above_only():
    given = [scene([0], [0], [0.9])]
    given[0].found[:, 2] += 1.0
    assert average_precision(given, 0, EASY, kind="bev", sampling="exact") == pytest.approx(1)
    assert average_precision(given, 0, EASY, kind="3d", sampling="exact") == 0


class Perfect(nn.Module):
    """Says the truth."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, batch):
        return {name: batch[name] for name in ("boxes", "boxes_offsets", "labels")}

    def boxes(self, outputs, picking):
        cuts = outputs["boxes_offsets"].diff().tolist()
        pairs = zip(outputs["boxes"].split(cuts), outputs["labels"].split(cuts), strict=True)
        return [Found(boxes=b, scores=torch.ones(len(b)), labels=n) for b, n in pairs]


def columns():
    return ReadKitti()({"source": rendered()}, work=Work.seeded(0))


def test_the_truth_is_perfect_and_a_fresh_detector_is_not():
    data = TensorData(columns()["test"])
    torch.manual_seed(0)
    fresh = model("pillars-8", grid=SMALL_GRID, layers=(0, 0, 0)).new().eval()
    metric = KittiAp(role="it", sampling="exact")
    scores = metric({"it": Perfect()}, data, work=Work())
    assert scores["mean_3d_hard_exact_ap"] == pytest.approx(1)
    assert metric({"it": fresh}, data, work=Work())["mean_3d_hard_exact_ap"] < 0.1


def test_truths_outside_the_range_can_be_left_out():
    data = TensorData(columns()["test"])
    near = PillarGrid(x=(0.0, 17.6), y=(-8.8, 8.8), cell=0.55)
    count = [
        sum(
            int((one.difficulty >= 0).sum())
            for one in found_scenes({"it": Perfect()}, data, role="it", within=grid)
        )
        for grid in (None, near)
    ]
    assert 0 < count[1] < count[0]


def test_bad_settings_and_roles_are_named():
    with pytest.raises(BadSetting, match="points must be 40 or 11 \\(got 20\\)"):
        KittiAp(points=20)
    with pytest.raises(BadSetting, match="overlaps must be"):
        KittiAp(overlaps=(0.7, 0.5, 0.0))
    data = TensorData(columns()["test"])
    with pytest.raises(BadData, match="role 'it': a Linear finds no boxes; give a detector"):
        KittiAp(role="it")({"it": nn.Linear(1, 1)}, data, work=Work())
