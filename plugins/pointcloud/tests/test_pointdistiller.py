"""The recipe: its stages and rows, who learns from what, and that the loss leaves the rest alone."""

import math
from dataclasses import replace

import pytest
import torch

from stillhouse.checksums import bits_of
from stillhouse.data.data import TensorData
from stillhouse.engine import fit
from stillhouse.errors import BadSetting, StillhouseError
from stillhouse.objectives.features import at_loss, hint_loss
from stillhouse.objectives.objective import Weighted
from stillhouse.recipe import Context
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Convert, Evaluate, Make, Train
from stillhouse.training import Setup
from stillhouse.work import Work
from stillhouse_pointcloud.camera_images import WithCameraImages
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.distilled import GraphRole
from stillhouse_pointcloud.figures import BirdsEye, Overlay
from stillhouse_pointcloud.mixed import ReadMixed
from stillhouse_pointcloud.objectives import LocalGraphDistillation
from stillhouse_pointcloud.recipes.pointdistiller_settings import GRAPHS, STUDENTS
from stillhouse_pointcloud.samples import scenes

NAME = "pointcloud/pointdistiller"


def recipe(scale="tiny", **settings):
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def test_stages_of_a_seed_and_rows_of_the_report():
    made = recipe(students=["alone", "both"], seeds=2)
    assert [s.name for s in made.stages] == [
        "data", "teacher", "teacher-scores", "alone-0", "alone-0-scores", "alone-1", "alone-1-scores",
        "both-0", "both-0-scores", "both-1", "both-1-scores", "ceiling", "pictures",
        "first-student", "encoders-alone", "encoders", "export",
    ]  # fmt: skip
    assert {title: row.stages for title, row in made.rows.items()} == {
        "teacher": ("teacher-scores",),
        "student 4x alone": ("alone-0-scores", "alone-1-scores"),
        "both": ("both-0-scores", "both-1-scores"),
    }
    assert list(recipe().rows) == [
        "teacher", "student 4x alone", "student 16x alone", "FitNets", "AT", "local only",
        "reweight only", "both",
    ]  # fmt: skip
    assert made.baseline == "student 4x alone"


def test_a_seed_later_leaves_the_stages_there_are():
    one, two = recipe(seeds=1), recipe(seeds=2)
    for stage in one.stages:
        assert two.stage(stage.name) == stage


def test_students_differ_only_in_what_they_learn_from():
    made = recipe("small")
    first = made.stage("alone-0")
    for name in STUDENTS:
        student = made.stage(f"{name}-0")
        assert isinstance(student, Train)
        assert student.setup() == first.setup()
        assert next(iter(student.fresh)) == "student"
        assert student.inputs["data"] == "data.train"
        assert student.objective.grid == first.objective.grid
        assert student.objective.phases["student"].optimizer == (
            first.objective.phases["student"].optimizer
        )
        assert (student.fresh["student"] == first.fresh["student"]) == (name != "alone16")
        # everyone but those alone is given the teacher
        assert ("teacher" in student.inputs) == (not name.startswith("alone"))


def test_each_student_has_its_own_loss_and_helper():
    made = recipe()
    found = {n: made.stage(f"{n}-0").objective for n in STUDENTS}
    assert {n: list(o.losses) for n, o in found.items()} == {
        "alone": [], "alone16": [], "fitnets": ["hint"], "at": ["at"],
        "local": ["graphs"], "reweight": ["graphs"], "both": ["graphs"],
    }  # fmt: skip
    assert {n: o.phases["student"].trains[1:] for n, o in found.items()} == {
        "alone": (), "alone16": (), "fitnets": ("regressor",), "at": (),
        "local": ("graphs",), "reweight": ("graphs",), "both": ("graphs",),
    }  # fmt: skip
    assert found["fitnets"].losses["hint"].term.loss is hint_loss
    assert found["at"].losses["at"].term.loss is at_loss
    parts = {n: made.stage(f"{n}-0").fresh["graphs"].new().graphs for n in GRAPHS}
    assert {n: (g.local, g.reweight) for n, g in parts.items()} == {
        "local": (True, False), "reweight": (False, True), "both": (True, True),
    }  # fmt: skip
    # twice the mean over 8 channels and 16 items, or 1 where there are no graphs
    weights = {n: found[n].losses["graphs"].weight for n in GRAPHS}
    assert weights == {"local": 2 / 128, "reweight": 2 / 8, "both": 2 / 128}


def test_paper_has_the_settings_of_the_paper():
    made = recipe("paper")
    assert made.stage("teacher").fresh["teacher"].kwargs["width"] == 64
    both = made.stage("both-0")
    assert both.fresh["student"].kwargs["width"] == 32
    assert made.stage("alone16-0").fresh["student"].kwargs["width"] == 16
    loss = both.fresh["graphs"].new().graphs
    assert (loss.num, loss.k, loss.out_dim, loss.tau) == (6000, 128, 32, 0.01)
    assert (loss.compat, loss.concat) == ("official", True)
    assert both.objective.losses["graphs"].weight == 1
    # KITTI's own frames alone, whose images are figures
    assert made.stage("data").ports == ("train", "validation", "test")
    assert made.stage("pictures").figures
    assert not made.stage("pictures").plots


def test_real_and_rendered_frames_are_scored_apart():
    made = recipe("small")
    assert made.stage("data").ports == ("train", "validation", "test", "real")
    scored = {s.name: s.inputs["data"] for s in made.stages if isinstance(s, Evaluate)}
    real = {name for name, data in scored.items() if data == "data.real"}
    assert real == {"real-0", "real-1", "real-2"}
    assert {d for name, d in scored.items() if name not in real} == {"data.test"}
    # nobody may publish KITTI's points; everybody our own
    assert made.stage("real-0").figures
    assert not made.stage("real-0").plots
    assert made.stage("pictures").plots
    # the teacher is one, whatever the seed
    scored = [set(made.stage(f"real-{seed}").metrics[0].lines) for seed in range(3)]
    assert scored[0] - scored[1] == {"teacher"}
    assert scored[1] == scored[2] == set(made.rows) - {"teacher"}
    assert "teacher" not in made.stage("real-1").inputs
    tried = recipe("small", scored_on="validation")
    assert tried.stage("both-0-scores").inputs["data"] == "data.validation"
    assert not tried.stage("pictures").plots


def test_boxes_are_drawn_in_the_images_of_real_frames():
    mixed, own, drawn = recipe("small"), recipe("paper"), recipe()
    assert [type(f) for f in mixed.stage("real-0").figures] == [BirdsEye, Overlay]
    assert [type(f) for f in own.stage("pictures").figures] == [BirdsEye, Overlay]
    assert [type(f) for f in drawn.stage("pictures").plots] == [BirdsEye]
    assert not any(isinstance(f, Overlay) for f in mixed.stage("pictures").plots)
    overlay = mixed.stage("real-0").figures[1]
    assert list(overlay.lines) == ["teacher", "student 4x alone", "both"]
    # the images are there where these figures look
    assert mixed.stage("data").make.port == "real"
    assert own.stage("data").make.port == "test"
    assert not isinstance(drawn.stage("data").make, WithCameraImages)


def test_an_own_teacher_is_used_as_it_is():
    made = recipe(teacher="file:a")
    assert isinstance(made.stage("teacher"), Convert)
    assert made.stage("teacher").inputs == {"checkpoint": "file:a", "data": "data.train"}
    untried = recipe(teacher="file:a", check_teacher=False).stage("teacher")
    assert untried.inputs == {"checkpoint": "file:a"}
    assert made.stage("both-0").inputs["teacher"] == "teacher.model"


def data(count=8):
    columns = ReadKitti()({"source": scenes()}, work=Work.seeded(0))["train"]
    whole = TensorData(columns)
    return TensorData(
        {
            name: column.rows(torch.arange(count)) if hasattr(column, "rows") else column[:count]
            for name, column in whole.columns.items()
        }
    )


def trained(tmp_path, name, *, weight=None, steps=3):
    """The roles of a student's stage before and after a few steps."""
    made = recipe()
    stage = made.stage(f"{name}-0")
    torch.manual_seed(5)
    teacher = made.stage("teacher").fresh["teacher"].new()
    torch.manual_seed(6)
    roles = {role: spec.new() for role, spec in stage.fresh.items()}
    if "teacher" in stage.inputs:
        roles["teacher"] = teacher
    before = {role: bits_of(module) for role, module in roles.items()}
    objective = stage.objective
    if weight is not None:
        losses = {k: Weighted(term=v.term, weight=weight) for k, v in objective.losses.items()}
        # the gradient's norm counts encoders too, and its clipping must not mix them
        phases = {k: replace(p, clip_norm=None) for k, p in objective.phases.items()}
        objective = replace(objective, losses=losses, phases=phases)
    out = tmp_path / f"{name}-{weight}"
    ctx = Context(stage=name, out=out, checkpoints=out / "c", caches=out / "t")
    setup = Setup(steps=steps, batch=4, augment=stage.augment, views=2)
    fit(objective, roles, data(), setup=setup, ctx=ctx)
    return before, {role: bits_of(module) for role, module in roles.items()}


@pytest.mark.parametrize("name", ["both", "fitnets"])
def test_distillation_changes_nothing_but_the_student_and_its_helper(tmp_path, name):
    before, after = trained(tmp_path, name)
    assert before.pop("teacher") == after.pop("teacher")
    helper = "graphs" if name == "both" else "regressor"
    assert set(after) == {"student", helper}
    for role, bits in after.items():
        assert bits != before[role]
    # the student has no part of the loss
    alone = recipe().stage("alone-0").fresh["student"].new()
    assert set(after["student"]) == set(alone.state_dict())


def test_without_weight_the_graphs_leave_the_student_as_if_alone(tmp_path):
    _, alone = trained(tmp_path, "alone", weight=0.0)
    _, none = trained(tmp_path, "both", weight=0.0)
    _, some = trained(tmp_path, "both", weight=1.0)
    assert none["student"] == alone["student"]
    assert some["student"] != alone["student"]


def fed(teacher, student, batch):
    sides = {"teacher": teacher(batch), "student": student(batch)}
    return {f"{r}.{name}": v for r, side in sides.items() for name, v in side.items()}


def test_the_role_is_the_loss_of_the_pillars_cloud_by_cloud():
    made = recipe()
    torch.manual_seed(0)
    teacher = made.stage("teacher").fresh["teacher"].new()
    student = made.stage("both-0").fresh["student"].new()
    role = made.stage("both-0").fresh["graphs"].new()
    given = fed(teacher, student, next(iter(data(3).batches(3, rng=None))))
    found = role(given)
    sizes = given["student.voxel_offsets"].diff().tolist()
    parts = [given[f"{r}.voxels"].split(sizes) for r in ("teacher", "student")]
    counts = given["student.voxel_counts"].split(sizes)
    expected = role.graphs(*parts, counts)
    assert len(role.graphs.chosen) == 3
    assert found["loss"].item() == pytest.approx(expected.item())
    outputs = {"graphs": found}
    term = made.stage("both-0").objective.losses["graphs"].term
    assert term(outputs, {}) is found["loss"]


def test_a_map_can_be_distilled_too():
    made = recipe(layer="backbone.1", normalise=False)
    torch.manual_seed(0)
    role = made.stage("both-0").fresh["graphs"].new()
    assert role.graphs.teacher_dim == 32
    student = made.stage("both-0").fresh["student"].new()
    teacher = made.stage("teacher").fresh["teacher"].new()
    loss = role(fed(teacher, student, next(iter(data(2).batches(2, rng=None)))))["loss"]
    loss.backward()
    assert loss.item() > 0
    assert student.voxels.linear.weight.grad.abs().sum() > 0
    with pytest.raises(BadSetting, match="'neck' is a map, which needs importance 'max'"):
        GraphRole(graphs={**made.stage("both-0").fresh["graphs"].kwargs["graphs"],
                          "importance": "count"}, output="neck")  # fmt: skip
    assert isinstance(role.graphs, LocalGraphDistillation)
    # nothing is drawn of pillars that the loss did not choose
    assert not made.stage("encoders").plots


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"students": ["both"]}, "name each student once, and alone among them"),
        ({"students": ["alone", "alone"]}, "name each student once"),
        ({"students": ["alone", "bth"]}, "students.1: Input should be 'alone'"),
        ({"student": "pilars-8"}, "unknown detector 'pilars-8'. Did you mean"),
        ({"cell": 0.3}, "x must be whole cells of 0.3 m"),
        ({"layer": "head"}, "layer: Input should be 'default', 'voxels'"),
        ({"layer": "bev"}, "set normalise=false"),
        ({"rotation": 190}, "rotation: Input should be less than or equal to 180"),
        ({"tau": 0}, "tau: Input should be greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(StillhouseError, match=message):
        recipe(**settings)


def test_the_data_stage_of_small_mixes_scenes_with_real_frames():
    stage = recipe("small").stage("data")
    assert isinstance(stage, Make)
    assert isinstance(stage.make, WithCameraImages)
    mixed = stage.make.make
    assert isinstance(mixed, ReadMixed)
    assert (mixed.scenes, mixed.copies, mixed.lidar.beams) == (600, 5, 48)
    # no object beyond what the detectors see
    assert mixed.street.far == pytest.approx(33.2)
    assert recipe("small").stage("both-0").augment.rotation == pytest.approx(math.pi / 4)
