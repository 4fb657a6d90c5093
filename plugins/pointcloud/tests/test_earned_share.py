"""What of the graph loss's fall the student earned: by hand, and with encoders that do it alone."""

from dataclasses import replace

import pytest
import torch

from stillhouse.artifact import load_model
from stillhouse.checksums import bits_of
from stillhouse.data.data import TensorData
from stillhouse.engine import fit
from stillhouse.recipe import Context
from stillhouse.settings import make_recipe, make_settings
from stillhouse.training import Setup
from stillhouse.work import Work
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.distilled import EarnedShare, earned
from stillhouse_pointcloud.samples import scenes

NAME = "pointcloud/pointdistiller"


def recipe(**settings):
    return make_recipe(NAME, make_settings(NAME, "tiny", settings))


def data(count=8):
    columns = ReadKitti()({"source": scenes()}, work=Work.seeded(0))["train"]
    return TensorData(
        {
            name: column.rows(torch.arange(count)) if hasattr(column, "rows") else column[:count]
            for name, column in columns.items()
        }
    )


def test_the_share_by_hand():
    # of a fall from 1.5 to 0.3 the encoders have 0.9 alone: 0.3 of 1.2 is the student's
    assert earned(1.5, 0.6, 0.3) == pytest.approx(0.25)
    assert earned(1.5, 1.5, 0.3) == 1
    assert earned(1.5, 0.3, 0.3) == 0
    assert earned(1.5, 0.0, 0.3) == pytest.approx(-0.25)
    assert earned(0.3, 0.2, 0.3) is None


def trained(tmp_path, stage, roles, steps):
    ctx = Context(stage=stage.name, out=tmp_path, checkpoints=tmp_path / "c", caches=tmp_path / "t")
    setup = Setup(steps=steps, batch=4, augment=stage.augment, views=2)
    fit(stage.objective, roles, data(), setup=setup, ctx=ctx)


def test_encoders_that_lower_the_loss_alone_leave_the_student_nothing(tmp_path):
    """Both detectors stay as they were: the loss falls all the same, and the share says whose it
    is.
    """
    made = recipe()
    made.stage("first-student").convert({}, tmp_path / "first", work=Work())
    first = load_model(tmp_path / "first").module
    stage = made.stage("encoders-alone")
    torch.manual_seed(5)
    teacher = made.stage("teacher").fresh["teacher"].new().eval()
    graphs = stage.fresh["graphs"].new()
    before = [bits_of(module) for module in (teacher, first)]
    trained(tmp_path, stage, {"teacher": teacher, "student": first, "graphs": graphs}, 60)
    assert [bits_of(module) for module in (teacher, first)] == before
    roles = {"teacher": teacher, "first": first, "student": first, "alone": graphs}
    held = bits_of(graphs)
    found = EarnedShare()({**roles, "graphs": graphs}, data(), work=Work())
    assert found["alone_graph_loss"] < 0.5 * found["start_graph_loss"]
    assert found["student_earned_rate"] == 0
    assert bits_of(graphs) == held
    # encoders of the student that were never trained have lowered nothing
    torch.manual_seed(0)
    fresh = stage.fresh["graphs"].new()
    found = EarnedShare()({**roles, "graphs": fresh}, data(), work=Work())
    assert found.get("student_earned_rate", -1.0) < 0


def test_the_control_begins_as_the_student_and_is_trained_as_long(tmp_path):
    made = recipe()
    alone, both = made.stage("encoders-alone"), made.stage("both-0")
    assert replace(alone.setup(), seed=0) == replace(both.setup(), seed=0)
    assert alone.fresh == {"graphs": both.fresh["graphs"]}
    assert alone.objective.losses == both.objective.losses
    assert alone.outputs == ("graphs",)
    made.stage("first-student").convert({}, tmp_path / "first", work=Work())
    with torch.random.fork_rng():
        torch.manual_seed(both.seed)
        expected = both.fresh["student"].new()
    assert bits_of(load_model(tmp_path / "first").module) == bits_of(expected)
    metric = made.stage("encoders").metrics[1].lines["both"]
    assert metric == EarnedShare(student="student-both", alone="graphs-alone", graphs="graphs-both")
    none = recipe(students=["alone", "at"])
    assert not {"encoders-alone", "first-student"} & {stage.name for stage in none.stages}


def test_a_frozen_encoder_of_the_teacher_is_a_setting(tmp_path):
    made = recipe(teacher_encoder="frozen")
    stage = made.stage("both-0")
    torch.manual_seed(5)
    teacher = made.stage("teacher").fresh["teacher"].new().eval()
    roles = {role: spec.new() for role, spec in stage.fresh.items()} | {"teacher": teacher}
    encoders = roles["graphs"].graphs
    drawn, learned = (e.conv.weight.clone() for e in (encoders.teacher, encoders.student))
    trained(tmp_path, stage, roles, 3)
    assert torch.equal(encoders.teacher.conv.weight, drawn)
    assert not torch.equal(encoders.student.conv.weight, learned)
    assert recipe().stage("both-0").fresh["graphs"].kwargs["graphs"]["frozen"] is False
