"""Whose detectors the recipe takes, by their names; what of that needs no mmdetection3d."""

import pytest

from stillhouse.artifact import Model
from stillhouse.cli import main
from stillhouse.errors import BadSetting, MissingExtra, StillhouseError
from stillhouse.settings import make_recipe, make_settings
from stillhouse_pointcloud.detectors.found import Bounds
from stillhouse_pointcloud.mmdet.library import missing
from stillhouse_pointcloud.mmdet.operators import cuda_only
from stillhouse_pointcloud.mmdet.outputs import (
    Output,
    area,
    limits,
    outputs,
    voxel_layer,
    without_onnx,
)
from stillhouse_pointcloud.recipes.pointdistiller_detectors import Plain

NAME = "pointcloud/pointdistiller"
STOCK = {
    "teacher_model": "pointpillars-kitti",
    "student": "pointpillars-kitti/4",
    "student16": "pointpillars-kitti/16",
}
PILLARS = {
    "type": "VoxelNet",
    "data_preprocessor": {"voxel": True, "voxel_layer": {"voxel_size": [0.16, 0.16, 4]}},
    "voxel_encoder": {"type": "PillarFeatureNet", "feat_channels": [32]},
    "middle_encoder": {"type": "PointPillarsScatter", "in_channels": 32},
    "backbone": {"type": "SECOND", "in_channels": 32, "out_channels": [32, 64, 128]},
    "neck": {"type": "SECONDFPN", "out_channels": [64, 64, 64]},
}
SECOND = {
    "type": "VoxelNet",
    "voxel_encoder": {"type": "HardSimpleVFE"},
    "middle_encoder": {"type": "SparseEncoder"},
    "backbone": {"type": "SECOND", "in_channels": 256, "out_channels": [128, 256]},
    "neck": {"type": "SECONDFPN", "out_channels": [256, 256]},
}
POINTS = {
    "type": "PointRCNN",
    "data_preprocessor": {"type": "Det3DDataPreprocessor"},
    "backbone": {"type": "PointNet2SAMSG"},
    "neck": {"type": "PointNetFPNeck", "fp_channels": ((1536, 512, 512), (257, 128, 128))},
}


def recipe(scale="tiny", **settings):
    return make_recipe(NAME, make_settings(NAME, scale, settings))


needs_none = pytest.mark.skipif(not missing(), reason="mmdetection3d is installed")


@needs_none
@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_without_mmdetection3d_one_line_says_how_to_install_it(scale):
    with pytest.raises(MissingExtra, match=r"Run: uv sync .*--extra pointcloud-mmdet3d") as error:
        recipe(scale, **STOCK)
    assert "\n" not in str(error.value)


@needs_none
def test_the_command_stops_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path))
    sets = [word for name, value in STOCK.items() for word in ("--set", f"{name}={value}")]
    assert main(["run", NAME, *sets]) == 2
    assert "uv sync --no-default-groups --extra pointcloud-mmdet3d" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student": "pointpilars-kitti/4"}, "Did you mean 'pointpillars-kitti'"),
        ({"teacher_model": "nothing"}, "teacher_model: unknown detector 'nothing'. Valid: <file>"),
        ({"student": "pillars-0"}, "student: unknown detector 'pillars-0'"),
        (
            {"teacher_model": "pointpillars-kitti"},
            "student: 'pillars-8' is ours and teacher_model 'pointpillars-kitti' mmdetection3d's",
        ),
        (STOCK | {"student16": "pillars-4"}, "or leave alone16 out of students"),
        ({"layer": "points", "normalise": False}, "unknown output 'points'"),
    ],
)
def test_names_that_do_not_fit_are_named(settings, message):
    with pytest.raises(StillhouseError, match=message):
        recipe(**settings)


def test_a_detector_that_no_student_asks_for_may_be_of_the_others():
    made = recipe(student16="pointpillars-kitti/16", students=["alone", "both"])
    assert made.stage("both-0").fresh["student"].kwargs["width"] == 8


def test_what_can_be_distilled_is_read_off_the_configuration():
    assert outputs(PILLARS) == {
        "voxels": Output(path="voxel_encoder", channels=32),
        "bev": Output(path="middle_encoder", channels=32),
        "backbone.0": Output(path="backbone.blocks.0", channels=32),
        "backbone.1": Output(path="backbone.blocks.1", channels=64),
        "backbone.2": Output(path="backbone.blocks.2", channels=128),
        "neck": Output(path="neck", channels=192),
    }
    assert list(outputs(SECOND)) == ["bev", "backbone.0", "backbone.1", "neck"]
    assert outputs(POINTS) == {"points": Output(path="neck.FP_modules.1", channels=128)}
    several = {f"pts_{name}": part for name, part in PILLARS.items() if isinstance(part, dict)}
    found = outputs({"type": "CenterPoint", **several})
    assert found["voxels"].path == "pts_voxel_encoder"
    assert found["neck"] == Output(path="pts_neck", channels=192)
    assert voxel_layer(PILLARS) == {"voxel_size": [0.16, 0.16, 4]}
    assert voxel_layer(POINTS) == {}


def test_what_runs_only_on_a_gpu_and_what_has_no_onnx_is_known_before():
    assert cuda_only(PILLARS) == ""
    assert cuda_only(SECOND) == "get_indice_pairs"
    assert cuda_only(POINTS) == "furthest_point_sample.forward"
    assert without_onnx(PILLARS) == ""
    assert without_onnx(SECOND).startswith("its sparse convolutions")
    assert without_onnx(POINTS).startswith("sampling and grouping points")
    other = {**PILLARS, "voxel_encoder": {"type": "DynamicVFE"}}
    assert without_onnx(other).startswith("only networks of pillars")


def test_a_layer_whose_importance_is_no_count_is_not_normalised():
    with pytest.raises(BadSetting, match="set normalise=false"):
        recipe(layer="neck")
    assert recipe(layer="voxels").stage("both-0") == recipe().stage("both-0")


def test_what_a_detector_sees_is_within_its_voxels_or_else_within_its_points():
    near = [0, -40, -3, 70.4, 40, 1]
    layer = {"voxel_size": [0.2, 0.2, 8], "point_cloud_range": [-50, -40, -5, 50, 40, 3]}
    voxels = {**PILLARS, "data_preprocessor": {"voxel": True, "voxel_layer": layer}}

    def spec(config, bounds):
        return Model(build=dict, kwargs={"config": config, "points": {"range": bounds}})

    assert limits(spec(voxels, near)) == (-50, -40, -5, 50, 40, 3)
    assert area(spec(voxels, near)) == Bounds(x=(-50, 50), y=(-40, 40))
    assert limits(spec(POINTS, near)) == tuple(near)
    assert limits(spec(POINTS, None)) is None
    assert area(spec(POINTS, None)) is None
    ours = Plain(settings=make_settings(NAME, "tiny", {"x": (0.0, 17.6), "y": (-8.8, 8.8)}))
    assert ours.limits == (0, -8.8, -3, 17.6, 8.8, 1)
