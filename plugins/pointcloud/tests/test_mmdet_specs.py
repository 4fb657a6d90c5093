"""What of the adapter to mmdetection3d needs no mmdetection3d: columns, narrowing, messages."""

import pytest
import torch

from stillhouse.errors import BadData, BadSetting, MissingExtra
from stillhouse_pointcloud.mmdet.clouds import Points, clouds, our_labels, own_labels
from stillhouse_pointcloud.mmdet.configs import model, plain
from stillhouse_pointcloud.mmdet.library import missing
from stillhouse_pointcloud.mmdet.narrow import narrowed
from stillhouse_pointcloud.mmdet.network import restored
from stillhouse_pointcloud.mmdet.operators import named_operators

RANGE = (0.0, -10.0, -3.0, 20.0, 10.0, 1.0)


def asked(**changed) -> Points:
    return Points(**{"channels": 4, "range": RANGE, "sample": None, "far": None, **changed})


def test_the_spec_says_how_to_install_what_is_missing():
    if not missing():
        pytest.skip("mmdetection3d is installed")
    with pytest.raises(
        MissingExtra, match="uv sync --no-default-groups --extra pointcloud-mmdet3d"
    ):
        model("pointpillars-kitti")


def test_a_configuration_survives_as_json():
    config = {"order": ("conv", "norm"), "widths": [[1, 2], (3,)], "eps": 1e-3, "none": None}
    assert plain(config)["order"] == {"tuple": ["conv", "norm"]}
    assert restored(plain(config)) == config
    with pytest.raises(BadSetting, match="a set cannot be kept"):
        plain({"bad": {1, 2}})


def test_points_outside_are_left_out_and_missing_channels_are_zero():
    points = torch.tensor([[5.0, 0, 0, 0.5], [25.0, 0, 0, 0.5], [5.0, 0, 2.0, 0.5]])
    assert asked().cloud(points).tolist() == [[5.0, 0, 0, 0.5]]
    assert asked(channels=5).cloud(points).tolist() == [[5.0, 0, 0, 0.5, 0.0]]


def test_a_sample_keeps_what_is_far_and_spreads_the_rest():
    near = torch.tensor([[float(i), 0, 0, 0] for i in range(1, 9)])
    far = torch.tensor([[15.0, 0, 0, 0], [16.0, 0, 0, 0]])
    points = torch.cat([far[:1], near, far[1:]])
    found = asked(sample=6, far=10.0).cloud(points)
    # of eight near points every second one
    assert found[:, 0].tolist() == [15.0, 1.0, 3.0, 5.0, 7.0, 16.0]
    assert asked(sample=4).cloud(near[:3])[:, 0].tolist() == [1.0, 2.0, 3.0, 1.0]


def test_an_empty_and_a_broken_cloud_are_named():
    batch = {
        "points": torch.tensor([[5.0, 0, 0, 0.5], [-5.0, 0, 0, 0.5]]),
        "points_offsets": torch.tensor([0, 1, 2]),
        "id": torch.tensor([3, 7]),
    }
    with pytest.raises(BadData, match="frame 7: none of its 1 points is within"):
        clouds(batch, asked())
    batch["points"][0, 1] = float("nan")
    with pytest.raises(BadData, match="frame 3: NaN or infinite points"):
        clouds(batch, asked())


def test_classes_are_matched_by_name():
    kitti = ["Pedestrian", "Cyclist", "Car"]
    assert own_labels(kitti) == [2, 0, 1]
    assert our_labels(kitti) == [1, 2, 0]
    assert our_labels(["car", "truck", "bicycle"]) == [0, -1, 2]


def test_a_fourth_of_the_parameters_is_half_the_channels():
    config = {
        "type": "VoxelNet",
        "voxel_encoder": {"type": "PillarFeatureNet", "in_channels": 4, "feat_channels": [64]},
        "middle_encoder": {"type": "PointPillarsScatter", "in_channels": 64},
        "backbone": {"type": "SECOND", "in_channels": 64, "out_channels": [64, 128, 256]},
        "neck": {"type": "SECONDFPN", "in_channels": [64, 128], "out_channels": [128] * 3},
        "bbox_head": {"type": "Anchor3DHead", "in_channels": 384, "feat_channels": 384},
    }
    half = narrowed(config, 4, where="x")
    assert half["voxel_encoder"]["feat_channels"] == [32]
    assert half["voxel_encoder"]["in_channels"] == 4
    assert half["backbone"]["out_channels"] == [32, 64, 128]
    assert half["bbox_head"]["in_channels"] == 192
    # a head takes what its necks give, whatever the rounding: 3 * floor(128 / sqrt 2)
    assert narrowed(config, 2, where="x")["bbox_head"]["in_channels"] == 270
    assert config["backbone"]["out_channels"] == [64, 128, 256]


def test_what_cannot_be_narrowed_is_named():
    config = {"type": "VoxelNet", "backbone": {"type": "ResNet"}}
    with pytest.raises(BadSetting, match="x: no narrower ResNet \\(backbone\\) is known here"):
        narrowed(config, 4, where="x")
    with pytest.raises(BadSetting, match="ratio of parameters must be >= 1 \\(got 0.5\\)"):
        narrowed(config, 0.5, where="x")
    config = {"backbone": {"type": "PointPillarsScatter", "in_channels": 2}}
    with pytest.raises(BadSetting, match="a layer of 2 channels has none left at 1/16"):
        narrowed(config, 16, where="x")


def test_an_operator_without_a_cpu_is_named():
    said = "ball_query_forward_impl: implementation for device cpu not found.\n"
    match = "x: mmcv's operator 'ball_query_forward' has no"
    with pytest.raises(BadSetting, match=match), named_operators("x"):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), named_operators("x"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
