"""mmdetection3d's detectors, where they are installed."""

import copy
import math
from pathlib import Path

import pytest
import torch

from stillhouse.artifact import Built, load_model, save_model
from stillhouse.data.data import TensorData
from stillhouse.engine import fit
from stillhouse.errors import BadData, BadSetting, MissingData, UnknownName
from stillhouse.objectives.objective import Optimizer, Phase, Weighted
from stillhouse.objectives.supervised import role_loss
from stillhouse.objectives.term import Term
from stillhouse.recipe import Context
from stillhouse.training import Setup
from stillhouse.work import Work
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.data import from_arrays
from stillhouse_pointcloud.detectors.found import Picking, detector
from stillhouse_pointcloud.distilled import GraphRole, graph_feeds
from stillhouse_pointcloud.metrics import KittiAp
from stillhouse_pointcloud.mmdet import DetectorTraining, LoadDetector, model
from stillhouse_pointcloud.mmdet.clouds import truth
from stillhouse_pointcloud.mmdet.library import missing
from stillhouse_pointcloud.mmdet.network import Detector
from stillhouse_pointcloud.samples import SMALL_LIDAR, SMALL_STREET, render

pytestmark = pytest.mark.skipif(
    bool(missing()), reason=f"{missing()} is not installed: uv sync --extra pointcloud-mmdet3d"
)

STEPS = 60
COARSE = str(Path(__file__).with_name("coarse_pillars.py"))
# as PointDistiller has them, but PointRCNN: 4.1, 0.5 and 0.3 there, rounded
MILLIONS = {
    "pointpillars-kitti": 4.83,
    "pointpillars-kitti/4": 1.22,
    "pointpillars-kitti/16": 0.31,
    "second-kitti": 5.33,
    "second-kitti/4": 1.34,
    "second-kitti/16": 0.34,
    "pointrcnn-kitti": 4.04,
    "pointrcnn-kitti/8": 0.51,
    "pointrcnn-kitti/16": 0.26,
    "centerpoint-nuscenes": 5.98,
    "centerpoint-nuscenes/4": 1.51,
}


def scenes(count: int) -> dict[str, torch.Tensor]:
    drawn = render(count, seed=1, lidar=SMALL_LIDAR, street=SMALL_STREET)
    columns = from_arrays({f"test_{name}": value for name, value in drawn.items()}, "test")
    return TensorData(columns).rows(torch.arange(count))


def built(name: str, **given) -> Detector:
    torch.manual_seed(0)
    module = model(name, **given).new()
    assert isinstance(module, Detector)
    return module


@pytest.mark.parametrize("name", MILLIONS)
def test_parameters_are_those_of_the_paper(name):
    count = sum(p.numel() for p in built(name).parameters()) / 1e6
    assert round(count, 2) == MILLIONS[name]


def test_pointpillars_trains_and_predicts():
    name = COARSE
    batch, student = scenes(2), built(f"{name}/16")
    for module in student.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.2  # the stock 0.01 takes hundreds of steps
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    values = []
    for _ in range(STEPS):
        outputs = student.train()(batch)
        optimizer.zero_grad()
        outputs["loss"].backward()
        optimizer.step()
        values.append(outputs["loss"].item())
    assert values[-1] < 0.1 * values[0]
    assert math.isclose(
        outputs["loss"].item(),
        sum(v.item() for k, v in outputs.items() if k.startswith("loss_")),
        rel_tol=1e-5,
    )
    with torch.no_grad():
        outputs = student.eval()(batch)
        found = student.detections(outputs, {"score_thr": 0.3})
    assert "loss" not in outputs
    assert len(found) == 2
    right = total = 0
    for row, (boxes, scores, labels) in enumerate(found):
        assert boxes.shape == (len(scores), 7)
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        truth = slice(*batch["boxes_offsets"][row : row + 2].tolist())
        for box, label in zip(batch["boxes"][truth], batch["labels"][truth], strict=True):
            same = boxes[labels == label]
            # centre and size of what it has learnt by heart
            right += bool(((same[:, :6] - box[:6]).abs() < 0.3).all(dim=1).any())
            total += 1
    assert right >= 0.7 * total


def test_features_are_those_of_the_module_and_counts_those_of_the_voxels():
    batch = scenes(2)
    module = built(COARSE, layers={"voxels": "voxel_encoder", "deep": "backbone.blocks.2"})
    outputs = module.eval()(batch)
    total = int(outputs["voxel_offsets"][-1])
    assert outputs["voxels"].shape == (total, 64)
    assert outputs["voxel_counts"].shape == (total,)
    assert outputs["voxel_counts"].min() >= 1
    assert outputs["deep"].shape == (2, 256, 8, 8)
    # each point within range is in one voxel, as long as none is full
    points = batch["points"]
    low, high = torch.tensor([0, -16.0, -3]), torch.tensor([32.0, 16.0, 1])
    inside = ((points[:, :3] >= low) & (points[:, :3] < high)).all(dim=1).sum()
    counts = outputs["voxel_counts"]
    assert counts.sum() == inside or counts.max() == 32
    # nothing is left behind on the network
    assert all(not m._forward_hooks for m in module.modules())


def test_a_role_that_read_the_voxels_leaves_them_as_they_were():
    batch, module = scenes(1), built(f"{COARSE}/4").eval()
    seen = module.voxelised(batch)
    before = seen["voxel_points"].clone()
    first, second = module(seen), module(seen)
    assert torch.equal(seen["voxel_points"], before)
    assert torch.equal(first["cls"], second["cls"])
    assert torch.equal(first["cls"], module(batch)["cls"])


SEEN: dict[str, torch.Tensor] = {}


def both(teacher, student):
    """A loss of nothing that keeps what it was given."""
    SEEN.update(teacher=teacher, student=student)
    return student.mean() * 0


def test_the_objective_gives_teacher_and_student_the_same_voxels():
    file, batch = COARSE, scenes(2)
    teacher, student = built(file).eval().requires_grad_(False), built(f"{file}/4").train()
    SEEN.clear()
    objective = DetectorTraining(
        phases={"train": Phase(trains=("student",), optimizer=Optimizer(lr=1e-3))},
        losses={"kd": Weighted(term=Term(both, "teacher.voxels", "student.voxels"))},
    )
    models = {"teacher": teacher, "student": student}
    terms = objective.terms("train", models, batch, step=0, steps=1, rng=torch.Generator())
    assert set(terms) == {"detection", "kd"}
    sum(terms.values()).backward()
    assert len(SEEN["teacher"]) == len(SEEN["student"])
    assert (SEEN["teacher"].shape[1], SEEN["student"].shape[1]) == (64, 32)
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    models["teacher"] = built("pointpillars-kitti")
    with pytest.raises(BadSetting, match="role 'teacher': its voxels are"):
        objective.terms("train", models, batch, step=0, steps=1, rng=torch.Generator())


def test_the_kernel_trains_a_student_by_its_teacher(tmp_path):
    file = COARSE
    torch.manual_seed(0)
    widths = {"teacher_dim": 64, "student_dim": 16, "out_dim": 16}
    kd = GraphRole(graphs={**widths, "k": 8, "num": 128, "tau": 32.0})
    models = {"teacher": built(file), "student": built(f"{file}/16"), "kd": kd}
    before = copy.deepcopy(models["student"])
    objective = DetectorTraining(
        phases={"train": Phase(trains=("student", "kd"), optimizer=Optimizer(lr=1e-3))},
        losses={"kd": Weighted(term=Term(role_loss, "kd.loss"))},
        feeds={"kd": graph_feeds("voxels")},
    )
    drawn = render(4, seed=1, lidar=SMALL_LIDAR, street=SMALL_STREET)
    data = TensorData(from_arrays({f"test_{k}": v for k, v in drawn.items()}, "test"))
    ctx = Context(stage="s", out=tmp_path, checkpoints=tmp_path / "c", caches=tmp_path / "k")
    terms = fit(objective, models, data, setup=Setup(steps=4, batch=2), ctx=ctx).last
    assert {"detection", "kd"} <= {name.rpartition("/")[2] for name in terms}
    moved = [
        not torch.equal(mine, theirs)
        for mine, theirs in zip(before.parameters(), models["student"].parameters(), strict=True)
    ]
    assert all(moved)


def test_boxes_come_back_as_they_were_given():
    """mmdetection3d's truths are ours, within the range, by class; centres stay centres."""
    batch, module = scenes(1), built(COARSE)
    [sample] = truth(batch, module.classes, numbers=7, bounds=module.points.range)
    given = sample.gt_instances_3d
    centres = torch.cat([given.bboxes_3d.gravity_center, given.bboxes_3d.tensor[:, 3:]], dim=1)
    kept = [row for row in batch["boxes"] if 0 < row[0] < 32 and abs(row[1]) < 16]
    assert torch.allclose(centres, torch.stack(kept), atol=1e-5)
    names = [module.classes[int(label)] for label in given.labels_3d]
    ours = [
        CLASSES[int(label)]
        for row, label in zip(batch["boxes"], batch["labels"], strict=True)
        if 0 < row[0] < 32 and abs(row[1]) < 16
    ]
    assert names == ours


def test_the_metrics_read_its_boxes():
    batch, module = scenes(2), built(f"{COARSE}/16").eval()
    assert detector({"student": module}, "student") is module
    with torch.no_grad():
        outputs = module(batch)
        boxes = module.boxes(outputs, Picking(score=0.0, most=7))
    assert [len(one.boxes) for one in boxes] == [7, 7]
    drawn = render(2, seed=1, lidar=SMALL_LIDAR, street=SMALL_STREET)
    data = TensorData(from_arrays({f"test_{name}": value for name, value in drawn.items()}, "test"))
    scores = KittiAp()({"student": module}, data, work=Work())
    assert all(0 <= value <= 1 for value in scores.values())


def test_centerpoint_trains_and_predicts_on_a_cpu():
    batch, module = scenes(1), built("centerpoint-nuscenes/16")
    module.train()(batch)["loss"].backward()
    with torch.no_grad():
        outputs = module.eval()(batch)
        [(boxes, scores, labels)] = module.detections(outputs)
    assert outputs["neck"].shape[:2] == (1, 96)
    assert boxes.shape == (len(scores), 7)
    # of ten classes three are ours
    assert set(labels.tolist()) <= {-1, 0, 1, 2}


def test_a_spec_is_json_and_comes_back(tmp_path):
    spec = model(f"{COARSE}/16")
    torch.manual_seed(0)
    module = spec.new()
    save_model(tmp_path / "saved", Built(spec=spec, module=module))
    again = load_model(tmp_path / "saved")
    batch = scenes(1)
    with torch.no_grad():
        assert torch.equal(again.module(batch)["cls"], module.eval()(batch)["cls"])
    assert torch.equal(copy.deepcopy(module)(batch)["cls"], module(batch)["cls"])


def test_a_checkpoint_fits_or_is_named(tmp_path):
    spec = model("pointpillars-kitti/16")
    torch.manual_seed(1)
    module = spec.new()
    # as mmdetection3d's runner writes it
    torch.save({"meta": {"epoch": 80}, "state_dict": module.net.state_dict()}, tmp_path / "a.pth")
    convert = LoadDetector(model=spec)
    convert({"checkpoint": tmp_path / "a.pth"}, tmp_path / "out", work=Work())
    loaded = load_model(tmp_path / "out").module
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(
            loaded.state_dict().values(), module.state_dict().values(), strict=True
        )
    )
    with pytest.raises(
        BadData, match=r"a.pth \(pointpillars-kitti/4\): does not fit the model: .* is"
    ):
        LoadDetector(model=model("pointpillars-kitti/4"))(
            {"checkpoint": tmp_path / "a.pth"}, tmp_path / "no", work=Work()
        )
    other = Built(spec=model("second-kitti/16"), module=built("second-kitti/16"))
    with pytest.raises(BadData, match="the given detector has voxels"):
        convert({"checkpoint": other}, tmp_path / "no", work=Work())
    wide = Built(spec=model("pointpillars-kitti/4"), module=built("pointpillars-kitti/4"))
    with pytest.raises(BadData, match="'voxels' has 32 channels, that of pointpillars-kitti/16 16"):
        convert({"checkpoint": wide}, tmp_path / "no", work=Work())
    bare = Built(spec=model("pointpillars-kitti/16", layers={}), module=module)
    with pytest.raises(BadData, match="the given detector gives no 'voxels'; give one that does"):
        convert({"checkpoint": bare}, tmp_path / "no", work=Work())


@pytest.mark.parametrize(("name", "operator"), [("pointrcnn-kitti/16", "furthest_point_sample")])
def test_what_needs_cuda_says_so(name, operator):
    match = f"{name}: mmcv's operator '.*{operator}.*FORCE_CUDA=1.*or take pointpillars-kitti"
    for train in (True, False):
        with pytest.raises(BadSetting, match=match):
            built(name).train(train)(scenes(1))


def test_names_layers_and_types_are_checked():
    with pytest.raises(UnknownName, match="unknown detector 'pointpilars-kitti'. Did you mean"):
        model("pointpilars-kitti/4")
    with pytest.raises(MissingData, match="no such configuration file"):
        model("nowhere/config.py")
    with pytest.raises(BadSetting, match="layer 'x': it has no module 'backbone.block'"):
        built("pointpillars-kitti/16", layers={"x": "backbone.block"})
    spec = model("pointpillars-kitti/16")
    config = {**spec.kwargs["config"], "neck": {"type": "os.system"}}
    with pytest.raises(BadSetting, match="type 'os.system' is no name of mmdetection3d's"):
        spec.build(**{**spec.kwargs, "config": config})
    weights = {"type": "Pretrained", "checkpoint": "https://example.org/x.pth"}
    config = {**spec.kwargs["config"], "init_cfg": weights}
    with pytest.raises(BadSetting, match="give the weights as a checkpoint"):
        spec.build(**{**spec.kwargs, "config": config})
