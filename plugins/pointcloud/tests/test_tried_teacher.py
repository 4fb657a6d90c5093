"""A given teacher that finds nothing, or finds it under other names, stops before training."""

import numpy as np
import pytest
import torch

from stillhouse.artifact import Built, Model
from stillhouse.data.data import TensorData
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_pointcloud.converts import LoadDetector
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.detectors import SMALL_GRID, model
from stillhouse_pointcloud.samples import scenes
from stillhouse_pointcloud.tried import TriedDetector, check

SPEC: Model = model("pillars-4", grid=SMALL_GRID, layers=(0, 0, 0))


def data():
    return TensorData(ReadKitti()({"source": scenes()}, work=Work.seeded(0))["test"])


def test_one_that_finds_nothing_is_refused_and_can_be_taken_all_the_same(tmp_path):
    torch.manual_seed(0)
    fresh = Built(spec=SPEC, module=SPEC.new().eval())
    load = TriedDetector(load=LoadDetector(model=SPEC), within=SMALL_GRID)
    with pytest.raises(BadData) as caught:
        load({"checkpoint": fresh, "data": data()}, tmp_path / "no", work=Work())
    said = str(caught.value)
    assert said.startswith("the given teacher finds 0 of the ")
    assert said.endswith("Give one that finds them, or set check_teacher=false to go on with it as it is")  # fmt: skip
    load({"checkpoint": fresh}, tmp_path / "yes", work=Work())
    assert (tmp_path / "yes/model.json").is_file()


def test_classes_in_another_order_are_named():
    # 40 cars found as cyclists, 10 cyclists as cars
    turned = np.array([[0, 0, 40, 50], [0, 1, 0, 20], [10, 0, 0, 15]])
    with pytest.raises(BadData) as caught:
        check(turned)
    assert str(caught.value) == (
        "the given teacher finds 1 of the 85 boxes in 64 training frames, and 50 as another class "
        "(Car as Cyclist): its classes are in another order than Car, Pedestrian, Cyclist; give "
        "one with these, or set check_teacher=false to go on with it as it is"
    )
    check(np.array([[5, 0, 0, 50], [0, 1, 0, 20], [0, 0, 0, 15]]))  # weak, and no more than that


@pytest.mark.parametrize(
    "meta",
    [
        {"epoch": 80, "CLASSES": ("Pedestrian", "Cyclist", "Car")},  # mmdetection3d below 1.1
        {"epoch": 80, "dataset_meta": {"classes": ["person", "bicycle", "car"]}},  # since
    ],
)
def test_a_checkpoint_s_class_names_are_compared_with_the_run_s(tmp_path, meta):
    torch.manual_seed(0)
    file = tmp_path / "epoch_80.pth"
    torch.save({"meta": meta, "state_dict": SPEC.new().state_dict()}, file)
    load = TriedDetector(load=LoadDetector(model=SPEC), within=SMALL_GRID)
    for source in (file, tmp_path):
        with pytest.raises(BadData) as caught:
            load({"checkpoint": source, "data": data()}, tmp_path / "no", work=Work())
        line = str(caught.value)
        assert line.startswith("the given model's classes are in another order: its ")
        assert line.endswith(
            "the run's Car, Pedestrian, Cyclist; give one whose classes are Car, Pedestrian, "
            "Cyclist, or set check_teacher=false to go on with it as it is"
        )
    load({"checkpoint": file}, tmp_path / "yes", work=Work())
    assert (tmp_path / "yes/model.json").is_file()


def test_a_checkpoint_with_the_run_s_names_is_tried(tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "epoch_80.pth"
    meta = {"dataset_meta": {"classes": ("car", "pedestrian", "cyclist")}}
    torch.save({"meta": meta, "state_dict": SPEC.new().state_dict()}, file)
    load = TriedDetector(load=LoadDetector(model=SPEC), within=SMALL_GRID)
    with pytest.raises(BadData, match="the given teacher finds 0 of the "):
        load({"checkpoint": file, "data": data()}, tmp_path / "no", work=Work())
