"""pointcloud/pointdistiller with mmdetection3d's detectors, where they are installed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.artifact import Built, load_model
from stillhouse.checksums import bits_of
from stillhouse.cli.target import make_target
from stillhouse.data.data import TensorData
from stillhouse.engine import fit
from stillhouse.errors import BadSetting
from stillhouse.recipe import Context
from stillhouse.runs import run_recipe
from stillhouse.settings import make_recipe, make_settings
from stillhouse.testing import DomainSuite
from stillhouse.training import Setup
from stillhouse.work import Work
from stillhouse_pointcloud.data import from_arrays
from stillhouse_pointcloud.detectors.found import Bounds
from stillhouse_pointcloud.distilled import graph_feeds
from stillhouse_pointcloud.mmdet import DetectorTraining, LoadDetector, model
from stillhouse_pointcloud.mmdet.export import ExportDetector
from stillhouse_pointcloud.mmdet.library import missing
from stillhouse_pointcloud.predict import predict
from stillhouse_pointcloud.samples import SMALL_LIDAR, SMALL_STREET, render
from stillhouse_pointcloud.tried import TriedDetector

pytestmark = [
    pytest.mark.timeout(1500),
    pytest.mark.skipif(
        bool(missing()), reason=f"{missing()} is not installed: uv sync --extra pointcloud-mmdet3d"
    ),
]

NAME = "pointcloud/pointdistiller"
COARSE = str(Path(__file__).with_name("coarse_pillars.py"))
STOCK = {
    "teacher_model": "pointpillars-kitti",
    "student": "pointpillars-kitti/4",
    "student16": "pointpillars-kitti/16",
}
# 16, 8 and 4 channels, as the plain detectors at tiny
SMALL = {
    "teacher_model": f"{COARSE}/16",
    "student": f"{COARSE}/64",
    "student16": f"{COARSE}/256",
    "steps": 6,
    "teacher_steps": 6,
}


class TestStockDetectors(DomainSuite):
    domain = "pointcloud"
    assignments = {"pointdistiller": [f"{name}={value}" for name, value in SMALL.items()]}


@pytest.fixture
def gpu(monkeypatch):
    """As if there was one: what is only built runs none of its operators."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def recipe(scale="tiny", **settings):
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def names(detector: str, *ratios: int) -> dict[str, str]:
    settings = ("student", "student16")
    ratio = dict(zip(settings, ratios, strict=False))
    return {"teacher_model": detector} | {k: f"{detector}/{r}" for k, r in ratio.items()}


def data(count: int) -> TensorData:
    drawn = render(count, seed=1, lidar=SMALL_LIDAR, street=SMALL_STREET)
    return TensorData(from_arrays({f"test_{name}": value for name, value in drawn.items()}, "test"))


def built(name: str) -> Built:
    torch.manual_seed(0)
    spec = model(name)
    return Built(spec=spec, module=spec.new().eval())


def test_pillars_are_distilled_as_the_paper_does():
    made = recipe("paper", **STOCK)
    both = made.stage("both-0")
    assert isinstance(both.objective, DetectorTraining)
    loss = both.fresh["graphs"].new()
    assert loss.output == "voxels"
    assert (loss.graphs.teacher_dim, loss.graphs.student_dim) == (64, 32)
    assert (loss.graphs.num, loss.graphs.k, loss.graphs.importance) == (6000, 128, "count")
    regressor = made.stage("fitnets-0").fresh["regressor"].kwargs
    assert (regressor["channels"], regressor["targets"]) == ([32], [64])
    assert regressor["inputs"] == ["student.bev"]
    student = both.fresh["student"].new()
    assert round(sum(p.numel() for p in student.parameters()) / 1e6, 2) == 1.22
    # what it looks at is what it is scored on
    scores = made.stage("both-0-scores").metrics[0]
    assert scores.within == Bounds(x=(0, 69.12), y=(-39.68, 39.68)) == student.area
    norms = [m for m in student.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.01}
    small = recipe("small", **STOCK).stage("both-0").fresh["student"].new()
    assert small.net.backbone.blocks[0][1].momentum == 0.1
    assert any("mmdetection3d" in note for note in made.notes)
    assert made.stage("encoders").figures


def test_of_second_two_maps_are_distilled_each_by_encoders_of_its_own(gpu):
    made = recipe(**names("second-kitti", 4, 16))
    both = made.stage("both-0")
    roles = {role: both.fresh[role].new() for role in ("graphs", "graphs2")}
    assert [role.output for role in roles.values()] == ["backbone.0", "backbone.1"]
    sides = [(r.graphs.teacher_dim, r.graphs.student_dim) for r in roles.values()]
    assert sides == [(128, 64), (256, 128)]
    assert all(r.graphs.importance == "max" and not r.graphs.normalise for r in roles.values())
    assert {name: loss.term.names for name, loss in both.objective.losses.items()} == {
        "graphs": ("graphs.loss",),
        "graphs2": ("graphs2.loss",),
    }
    assert both.objective.feeds == {name: graph_feeds(r.output) for name, r in roles.items()}
    # a state of each, and no pillars to draw
    encoders = made.stage("encoders")
    assert {"both, backbone.0", "both, backbone.1"} < set(encoders.metrics[0].lines)
    assert not encoders.plots
    assert any("needs CUDA: mmcv's operator 'get_indice_pairs'" in note for note in made.notes)
    assert any("safetensors only: its sparse convolutions" in note for note in made.notes)


def test_points_are_distilled_by_the_largest_of_their_edges(gpu):
    given = names("pointrcnn-kitti", 8, 16)
    role = recipe(**given, students=["alone", "both"]).stage("both-0").fresh["graphs"].new()
    assert (role.output, role.graphs.importance, role.graphs.pooled) == ("points", "max", True)
    assert (role.graphs.teacher_dim, role.graphs.student_dim) == (128, 45)
    with pytest.raises(BadSetting, match="fitnets and at compare maps, of which pointrcnn-kitti"):
        recipe(**given)


@pytest.mark.parametrize(
    ("detector", "operator"),
    [("second-kitti", "get_indice_pairs"), ("pointrcnn-kitti", "furthest_point_sample.forward")],
)
def test_what_needs_cuda_stops_before_it_runs(detector, operator, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    match = f"teacher_model: {detector} needs CUDA, .* mmcv's operator '{operator}'"
    with pytest.raises(BadSetting, match=match) as error:
        recipe(**names(detector, 4, 16))
    assert "\n" not in str(error.value)


def test_voxels_and_outputs_that_differ_are_named():
    with pytest.raises(BadSetting, match=r"student: .* has voxels of \[0.5, 0.5, 4\] m, 32 points"):
        recipe(**STOCK | {"student": f"{COARSE}/4"})
    with pytest.raises(BadSetting, match="pointpillars-kitti has no output 'points' to distil; it"):
        recipe(**STOCK, layer="points", normalise=False)


@pytest.mark.parametrize("name", ["both", "fitnets"])
def test_distillation_changes_nothing_but_the_student_and_its_helper(tmp_path, name):
    made = recipe(**SMALL)
    stage = made.stage(f"{name}-0")
    torch.manual_seed(5)
    roles = {role: spec.new() for role, spec in stage.fresh.items()}
    roles["teacher"] = made.stage("teacher").fresh["teacher"].new()
    before = {role: bits_of(module) for role, module in roles.items()}
    ctx = Context(stage=name, out=tmp_path, checkpoints=tmp_path / "c", caches=tmp_path / "t")
    fit(stage.objective, roles, data(4), setup=Setup(steps=2, batch=2), ctx=ctx)
    after = {role: bits_of(module) for role, module in roles.items()}
    assert after.pop("teacher") == before.pop("teacher")
    assert set(after) == {"student", "graphs" if name == "both" else "regressor"}
    assert all(bits != before[role] for role, bits in after.items())


def test_a_checkpoint_of_mmdetection3d_is_a_teacher(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLHOUSE_ROOT", str(tmp_path))
    trained = built(SMALL["teacher_model"])
    state = trained.module.net.state_dict()
    torch.save({"meta": {"epoch": 80}, "state_dict": state}, tmp_path / "epoch_80.pth")
    # weights as drawn find nothing: nobody would learn from them unasked
    others = ("teacher=file:epoch_80.pth", "check_teacher=false", "students=alone,both", "steps=2")
    own = {k: SMALL[k] for k in ("teacher_model", "student")}
    target = make_target(NAME, assignments=[*(f"{k}={v}" for k, v in own.items()), *others])
    names = ("data", "teacher", "alone-0", "both-0")
    stages = tuple(target.recipe.stage(name) for name in names)
    assert isinstance(stages[1].convert, TriedDetector)
    assert isinstance(stages[1].convert.load, LoadDetector)
    runs = target.runs()
    part = replace(target.recipe, stages=stages, rows={}, studies={}, method="", ceiling=None)
    run_recipe(part, runs)
    [kept] = runs.folder.glob("teacher/**/model.json")
    loaded = load_model(kept.parent).module
    assert bits_of(loaded.net) == bits_of(trained.module.net)


def export(student: Built, out: Path) -> dict:
    convert = ExportDetector(title="x", paper="y", samples=2)
    convert({"student": student, "data": data(2)}, out, work=Work())
    return json.loads((out / "export.json").read_text())


@pytest.mark.parametrize("name", [f"{COARSE}/64", "centerpoint-nuscenes/64"])
def test_a_network_of_pillars_is_exported_from_voxels_to_maps(tmp_path, name):
    student = built(name)
    record = export(student, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").stat().st_size > 0
    assert record["checked_samples"] == 2
    numbers = student.module.points.channels
    most = student.module.voxel_layer.max_num_points
    voxels = {"dtype": "float32", "shape": ["voxels", most, numbers]}
    assert record["inputs"]["voxel_points"] == voxels
    assert record["classes"]
    assert record["decoding"]["head"]["type"]
    # the maps are those of the detector itself
    import onnxruntime

    batch = data(1).rows(torch.arange(1))
    seen = student.module.voxelised(batch)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    columns = ("voxel_points", "voxel_counts", "voxel_cells")
    maps = session.run(list(record["outputs"]), {name: seen[name].numpy() for name in columns})
    with torch.no_grad():
        outputs = student.module(batch)
    for output, found in zip(record["outputs"], maps, strict=True):
        assert torch.allclose(outputs[output], torch.from_numpy(found), atol=1e-3)


def test_a_network_without_onnx_says_why_and_is_exported(tmp_path):
    record = export(built("second-kitti/16"), tmp_path / "out")
    assert record["onnx"] is None
    assert "mmcv's operators, which ONNX does not have" in record["why"]
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert "There is no ONNX file: its sparse" in (tmp_path / "out" / "README.md").read_text()
    assert load_model(tmp_path / "out").module.name == "second-kitti/16"


def test_predict_draws_and_lists_what_such_a_student_finds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    batch = data(1).rows(torch.arange(1))
    batch["points"].numpy().astype(np.float32).tofile("a.bin")
    student = built(f"{COARSE}/64")
    with torch.no_grad():
        student.module.net.bbox_head.conv_cls.bias.fill_(0.0)  # everything is half sure
    [row] = predict(student, [Path("a.bin")])
    found = row["car"] + row["pedestrian"] + row["cyclist"]
    assert found == len(Path(row["listed"]).read_text().splitlines()) > 0
    assert Path(row["drawn"]).stat().st_size > 0


def test_the_points_of_a_voxel_are_those_within_it():
    module = built(COARSE).module
    held = module.held(data(2).rows(torch.arange(2)))
    assert int(held.counts.sum()) == len(held.points)
    assert int(held.offsets[-1]) == len(held.counts)
    cells = held.batch["voxel_cells"].repeat_interleave(held.counts, dim=0)
    place = ((held.points[:, :2] - torch.tensor([0, -16.0])) / 0.5).floor().int()
    assert torch.equal(place, cells[:, [2, 1]])
