"""Our info files and database in mmdetection3d's own KittiDataset and ObjectSample."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from stillhouse.runs import project_root
from stillhouse_pointcloud.boxes import CLASSES, inside
from stillhouse_pointcloud.data import labelled
from stillhouse_pointcloud.frames import described, find_frames
from stillhouse_pointcloud.mmdet.library import imported, missing, quiet
from stillhouse_pointcloud.mmdet.transforms import drawn
from stillhouse_pointcloud.pickles import read_pickle
from stillhouse_pointcloud.stock import DATABASE_INFOS, write_infos
from stillhouse_pointcloud.sweeps import read_bin

KITTI = project_root(Path(__file__).parent) / "data" / "kitti-mini"
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        bool(missing()), reason=f"{missing()} is not installed: uv sync --extra pointcloud-mmdet3d"
    ),
    pytest.mark.skipif(
        not KITTI.is_dir(), reason=f"{KITTI} not found. Run: uv run dvc pull data.dvc"
    ),
]
SIDES = np.array([0, 0, 0, 1, 1, 1, 0])
LOAD = [
    {"type": "mmdet3d.LoadPointsFromFile", "coord_type": "LIDAR", "load_dim": 4, "use_dim": 4},
    {"type": "mmdet3d.LoadAnnotations3D", "with_bbox_3d": True, "with_label_3d": True},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("stock") / "kitti"
    shutil.copytree(KITTI, root)
    write_infos(root, root)
    return root


def dataset(folder, split, pipeline):
    with quiet():
        return imported("mmdet3d.datasets").KittiDataset(
            data_root=str(folder),
            ann_file=f"kitti_infos_{split}.pkl",
            data_prefix={"pts": "training/velodyne_reduced", "img": "training/image_2"},
            pipeline=pipeline,
            modality={"use_lidar": True, "use_camera": False},
            metainfo={"classes": list(CLASSES)},
            filter_empty_gt=False,
        )


def ours(boxes):
    """Their boxes [M, 7] as we have them, by what they say of themselves."""
    found = np.concatenate([boxes.gravity_center, boxes.tensor[:, 3:7]], axis=1)
    return found.astype(np.float64)


def close(one, two, *, metres=1e-4) -> bool:
    turn = np.abs((one[:, 6] - two[:, 6] + math.pi) % (2 * math.pi) - math.pi)
    return bool(np.abs(one[:, :6] - two[:, :6]).max(initial=0) < metres) and bool(
        turn.max(initial=0) < 1e-4
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_kitti_dataset_reads_the_same_frames(folder, split):
    frames, stock = find_frames(folder)[split], dataset(folder, split, LOAD)
    assert len(stock) == len(frames)
    listed = read_pickle(folder / DATABASE_INFOS)
    database = np.stack([one["box3d_lidar"] for objects in listed.values() for one in objects])
    count = 0
    for i, frame in enumerate(frames):
        found, columns = stock.prepare_data(i), labelled(described(frame).labels)
        assert found["lidar_path"].endswith(f"/velodyne_reduced/{frame.name}.bin")
        assert np.array_equal(found["points"].tensor.numpy(), read_bin(frame.points))
        assert found["gt_labels_3d"].tolist() == columns["labels"].tolist()
        # they move the bottom's middle to the LiDAR, we the centre, and the camera leans
        assert close(ours(found["gt_bboxes_3d"]), columns["boxes"], metres=0.03)
        for box in found["gt_bboxes_3d"].tensor.numpy() if split == "train" else ():
            assert np.abs(database - box).max(axis=1).min() < 1e-4
        count += len(columns["labels"])
    assert count == {"train": 65, "val": 48}[split]


def test_object_sample_pastes_out_of_our_database(folder):
    groups = {"Car": 12, "Pedestrian": 6, "Cyclist": 6}
    listed = read_pickle(folder / DATABASE_INFOS)
    sampler = {
        "type": "DataBaseSampler",
        "data_root": str(folder),
        "info_path": str(folder / DATABASE_INFOS),
        "rate": 1.0,
        "prepare": {
            "filter_by_difficulty": [-1],
            "filter_by_min_points": {"Car": 5, "Pedestrian": 10, "Cyclist": 10},
        },
        "classes": list(CLASSES),
        "sample_groups": groups,
        "points_loader": LOAD[0],
    }
    with quiet(), drawn(0):
        stock = dataset(
            folder, "train", [*LOAD, {"type": "mmdet3d.ObjectSample", "db_sampler": sampler}]
        )
        plain = dataset(folder, "train", LOAD)
        pasted = 0
        for i in range(len(stock)):
            before, after = plain.prepare_data(i), stock.prepare_data(i)
            count = len(before["gt_labels_3d"])
            boxes, points = ours(after["gt_bboxes_3d"]), after["points"].tensor.numpy()
            assert close(boxes[:count], ours(before["gt_bboxes_3d"]))
            bottoms = after["gt_bboxes_3d"].tensor.numpy()
            for row, label in enumerate(after["gt_labels_3d"].tolist()[count:], count):
                (one,) = (
                    one
                    for one in listed[CLASSES[label]]
                    if np.allclose(one["box3d_lidar"], bottoms[row], atol=1e-5)
                )
                # float32 at a surface
                least, most = (
                    int(inside(points.astype(np.float64), boxes[row] + by * SIDES).sum())
                    for by in (-1e-3, 1e-3)
                )
                assert least <= one["num_points_in_gt"] <= most
                assert one["num_points_in_gt"] >= 5
                pasted += 1
    assert pasted > 50
