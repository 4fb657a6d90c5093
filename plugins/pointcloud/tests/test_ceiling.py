"""What a perfect detector's AP is on few boxes, by the code that scores the others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stillhouse.data.data import TensorData
from stillhouse.errors import BadData
from stillhouse.settings import make_recipe, make_settings
from stillhouse.work import Work
from stillhouse_pointcloud.ceiling import BoxCounts, KittiCeiling
from stillhouse_pointcloud.data import ReadKitti, from_arrays
from stillhouse_pointcloud.detectors import PillarGrid
from stillhouse_pointcloud.metrics import KittiAp
from stillhouse_pointcloud.samples import PROJECTION, scenes

NAME = "pointcloud/pointdistiller"


def cars(count: int, difficulty: int = 0) -> TensorData:
    """A scene of cars in two rows, 8 m and more ahead."""
    boxes = [[8.0 + 5 * (i // 2), 3.0 - 6 * (i % 2), -1, 3.9, 1.6, 1.5, 0] for i in range(count)]
    ragged = {
        "points": np.array([[10.0, 0, 0, 0.5]], dtype=np.float32),
        "boxes": np.array(boxes, dtype=np.float32),
        "labels": np.zeros(count, dtype=np.int64),
        "difficulty": np.full(count, difficulty),
        "ignored": np.zeros((0, 7), dtype=np.float32),
        "ignored_labels": np.zeros(0, dtype=np.int64),
    }
    arrays = {f"x_{name}": value for name, value in ragged.items()}
    arrays |= {f"x_{name}_offsets": np.array([0, len(value)]) for name, value in ragged.items()}
    arrays |= {"x_projection": PROJECTION[None], "x_image_size": np.array([[1242, 375]])}
    return TensorData(from_arrays(arrays, "x"))


@pytest.mark.parametrize(("count", "most"), [(6, 0.125), (5, 0.1)])
def test_few_cars_have_a_ceiling(count, most):
    found = KittiCeiling(ap=KittiAp())({}, cars(count), work=Work())
    assert found["car_3d_moderate_ap"] == found["mean_3d_moderate_ap"] == pytest.approx(most)
    counts = {name: n for name, n in found.items() if name.endswith("_boxes") and n}
    assert counts == {"car_easy_boxes": count, "car_moderate_boxes": count, "car_hard_boxes": count}
    exact = KittiCeiling(ap=KittiAp(sampling="exact"))({}, cars(count), work=Work())
    assert exact["mean_3d_moderate_exact_ap"] == pytest.approx(1)


def test_boxes_are_counted_by_level_and_within_the_range():
    assert BoxCounts()({}, cars(4, difficulty=1), work=Work())["car_easy_boxes"] == 0
    assert BoxCounts()({}, cars(4, difficulty=1), work=Work())["car_moderate_boxes"] == 4
    near = PillarGrid(x=(0.0, 12.0), y=(-8.0, 8.0), cell=1.0)
    assert BoxCounts(within=near)({}, cars(6), work=Work())["car_hard_boxes"] == 2
    assert BoxCounts()({}, cars(2, difficulty=-1), work=Work())["car_hard_boxes"] == 0
    none = TensorData({"points": torch.zeros(0, 4)})
    with pytest.raises(BadData, match="the evaluation data hold no cloud"):
        BoxCounts()({}, none, work=Work())


def stage_scores(made):
    return made.stage("ceiling").metrics[0]({}, held(), work=Work())


def held():
    return TensorData(ReadKitti()({"source": scenes()}, work=Work.seeded(0))["test"])


def test_the_recipe_prints_the_ceiling_of_the_frames_that_score():
    made = make_recipe(NAME, make_settings(NAME, "tiny"))
    stage = made.stage("ceiling")
    assert dict(stage.inputs) == {"data": "data.test"}
    assert ("ceiling",) in made.studies.values()
    assert made.ceiling.stages == ("ceiling",)
    assert {made.ceiling.score, *made.ceiling.counts} <= {*stage_scores(made)}
    assert stage.metrics[0].ap == made.stage("alone-0-scores").metrics[0]
    data = held()
    found = stage.metrics[0]({}, data, work=Work())
    # 24 drawn scenes: under 41 boxes a class
    assert 0.3 < found["mean_3d_moderate_ap"] < 0.9
    assert max(found[f"{who}_moderate_boxes"] for who in ("car", "pedestrian", "cyclist")) < 41
    real = make_recipe(NAME, make_settings(NAME, "small")).stage("real-0")
    assert any(isinstance(metric, BoxCounts) for metric in real.metrics)
    everywhere = replace(stage.metrics[0].ap, within=None)
    assert (
        KittiCeiling(ap=everywhere)({}, data, work=Work())["car_hard_boxes"]
        >= found["car_hard_boxes"]
    )
