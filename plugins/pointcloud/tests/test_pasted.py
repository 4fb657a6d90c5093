"""Objects of other training frames in a scene: which, where, how many, the same again."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from stillhouse.data.data import Ragged, TensorData, rows_of
from stillhouse.engine import fit
from stillhouse.errors import BadData, BadSetting, MissingExtra
from stillhouse.recipe import Context
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Make, Train
from stillhouse.training import Setup
from stillhouse.work import Work
from stillhouse_pointcloud.augment import SceneAugment
from stillhouse_pointcloud.boxes import CLASSES, inside
from stillhouse_pointcloud.camera_images import WithCameraImages
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.mixed import ReadMixed
from stillhouse_pointcloud.mmdet.library import missing
from stillhouse_pointcloud.mmdet.transforms import LibraryAugment
from stillhouse_pointcloud.overlaps import bev_areas
from stillhouse_pointcloud.pasted import MIN_POINTS, ObjectSampling, WithGroundTruthSamples
from stillhouse_pointcloud.samples import SMALL_LIDAR, SMALL_STREET, scenes

STILL = SceneAugment(flip=0.0, rotation=0.0, scale=0.0)
OBJECTS, CARRIED = 5, 10
FAR = (-200.0, -200.0, -20.0, 200.0, 200.0, 20.0)  # nothing is outside
NAME = "pointcloud/pointdistiller"
library = pytest.mark.skipif(
    bool(missing()), reason=f"{missing()} is not installed: uv sync --extra pointcloud-mmdet3d"
)


def made(make=None, seed=0):
    maker = WithGroundTruthSamples(make=make or ReadKitti(), samples=CARRIED)
    return maker({"source": scenes()}, work=Work.seeded(seed))


def batch(count=6, view=1, **given):
    rows = TensorData(made(**given)["train"]).rows(torch.arange(count))
    return {**rows, "view": torch.full((count,), view)}


def plain(**given):
    return ObjectSampling(objects=OBJECTS, then=STILL, **given)


def by_library(**given):
    still = {"objects": OBJECTS, "range": FAR, "flip": 0.0, "rotation": 0.0, "scale": 0.0}
    return LibraryAugment(**{**still, **given})


both = pytest.mark.parametrize(
    "sampling", [plain, pytest.param(by_library, marks=library)], ids=["plain", "mmdet3d"]
)


def part(rows, name, row):
    start, stop = rows[f"{name}_offsets"][row : row + 2].tolist()
    return rows[name][start:stop]


def boxes_of(rows, row, name="boxes"):
    return part(rows, name, row).double().numpy()


def test_spares_are_objects_of_other_training_frames():
    columns = made()
    assert not any(name.startswith("spare_") for name in columns["validation"])
    train, whole = TensorData(columns["train"]), {}
    for row, text in enumerate(columns["train"]["frames"]):
        rows = train.rows(torch.tensor([row]))
        for box in rows["boxes"]:
            whole[tuple(box.tolist())] = (json.loads(text)["name"], rows["points"])
    seen = 0
    for row, text in enumerate(columns["train"]["frames"]):
        rows = train.rows(torch.tensor([row]))
        counts, start = rows["spare_counts"].tolist(), 0
        labels = torch.bincount(rows["spare_labels"], minlength=len(CLASSES))
        assert labels.max() <= CARRIED
        for box, count in zip(rows["spare_boxes"], counts, strict=True):
            owner, points = whole[tuple(box.tolist())]  # a box of no other port is here
            assert owner != json.loads(text)["name"]
            held = inside(points.double().numpy(), box.double().numpy())
            assert count >= MIN_POINTS
            assert torch.equal(points[torch.as_tensor(held)], rows["spare_points"][start:][:count])
            start += count
            seen += 1
        assert start == len(rows["spare_points"])
        assert rows["spare_difficulty"].min() >= 0
    assert seen > 1000


def test_a_frame_that_is_there_twice_gives_its_objects_once_and_not_to_itself():
    mixed = ReadMixed(
        read=ReadKitti(), scenes=4, held_out=2, copies=3, lidar=SMALL_LIDAR, street=SMALL_STREET
    )
    columns = made(mixed)
    assert {name for name in columns["real"] if name.startswith("spare_")} == set()
    train = TensorData(columns["train"])
    for row in range(len(train)):
        rows = train.rows(torch.tensor([row]))
        spares = list(map(tuple, rows["spare_boxes"].tolist()))
        assert len(set(spares)) == len(spares)
        assert not set(spares) & set(map(tuple, rows["boxes"].tolist()))


def test_spares_are_the_rngs():
    one, again, other = (made(seed=seed)["train"]["spare_boxes"] for seed in (0, 0, 1))
    assert torch.equal(one.values, again.values)
    assert not torch.equal(one.values, other.values)


@both
def test_pasted_objects_are_spares_apart_and_as_many_as_asked(sampling):
    before = batch()
    after = sampling()(before)
    assert not any(name.startswith("spare_") for name in after)
    new = 0
    for row in range(6):
        count, there = len(part(before, "boxes", row)), boxes_of(before, row)
        boxes = boxes_of(after, row)
        assert np.allclose(boxes[:count], there, atol=1e-5)
        spares = boxes_of(before, row, "spare_boxes")
        gaps = np.abs(boxes[count:, None, :6] - spares[:, :6]).max(axis=2)
        assert (gaps.min(axis=1) < 1e-5).all()
        which = gaps.argmin(axis=1)
        assert len(set(which.tolist())) == len(which)
        for name in ("labels", "difficulty"):
            expected = part(before, f"spare_{name}", row)[torch.as_tensor(which)]
            assert torch.equal(part(after, name, row)[count:], expected)
        counts = torch.bincount(part(after, "labels", row), minlength=len(CLASSES))
        was = torch.bincount(part(before, "labels", row), minlength=len(CLASSES))
        assert (counts <= torch.maximum(was, torch.tensor(OBJECTS))).all()
        shared = bev_areas(boxes[count:], boxes)
        shared[np.arange(len(which)), count + np.arange(len(which))] = 0
        assert shared.max(initial=0) < 1e-6
        new += len(which)
    assert new > 6


@both
def test_pasted_boxes_hold_their_own_points_alone(sampling):
    before = batch()
    after = sampling()(before)
    for row in range(6):
        count = len(part(before, "boxes", row))
        points = part(after, "points", row)
        spares = boxes_of(before, row, "spare_boxes")
        counts = part(before, "spare_counts", row).tolist()
        ends = np.cumsum([0, *counts])
        kept = len(part(before, "points", row))
        for box in boxes_of(after, row)[count:]:
            which = int(np.abs(spares[:, :6] - box[:6]).max(axis=1).argmin())
            own = part(before, "spare_points", row)[ends[which] : ends[which + 1]]
            # float32 at a surface: all its own are in a box a little larger, none else in a smaller
            sides = np.array([0, 0, 0, 1, 1, 1, 0])
            larger, smaller = (
                inside(points.double().numpy(), box + by * sides) for by in (1e-3, -1e-3)
            )
            near = points[torch.as_tensor(larger)].double()
            gaps = torch.cdist(own.double(), near)
            assert gaps.min(dim=1).values.max() < 1e-4
            inner = torch.as_tensor(smaller[larger])
            assert gaps.min(dim=0).values[inner].max() < 1e-4
            scene = part(before, "points", row).double().numpy()
            kept += len(own) - int(inside(scene, box).sum())
        assert len(points) == pytest.approx(kept, abs=2)  # float32 at a surface


@both
def test_view_0_is_the_scene_and_others_are_their_ids_and_views_alone(sampling):
    rows = batch(view=0)
    same = sampling()(rows)
    for name in ("points", "boxes", "labels", "difficulty", "ignored"):
        assert torch.equal(same[name], rows[name])
        assert torch.equal(same[f"{name}_offsets"], rows[f"{name}_offsets"])
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    whole = sampling()(batch())
    again = sampling()(batch())
    one = sampling()(rows_of(batch(), torch.tensor([2])))
    for name in ("points", "boxes", "labels", "difficulty"):
        assert torch.equal(whole[name], again[name])
        assert torch.equal(part(whole, name, 2), one[name])
    for other in (sampling()(batch(view=2)), sampling(seed=1)(batch())):
        assert not torch.equal(other["boxes_offsets"], whole["boxes_offsets"]) or not torch.equal(
            other["boxes"], whole["boxes"]
        )
    # nobody else's numbers are drawn from
    assert torch.equal(state[0], torch.get_rng_state())
    assert np.array_equal(state[1], np.random.get_state()[1])


@both
def test_nothing_is_pasted_onto_an_ignored_box(sampling):
    rows = batch(1)
    big = torch.tensor([[0.0, 0, 0, 400, 400, 4, 0.0]])
    covered = {
        **rows, "ignored": big, "ignored_labels": torch.tensor([1]),
        "ignored_offsets": torch.tensor([0, 1]), "ignored_labels_offsets": torch.tensor([0, 1]),
    }  # fmt: skip
    after = sampling()(covered)
    assert torch.equal(after["labels"], rows["labels"])
    assert torch.allclose(after["ignored"], big)
    assert torch.equal(after["ignored_labels"], torch.tensor([1]))


@library
def test_the_librarys_scene_is_moved_as_a_whole():
    before = batch()
    change = {"flip": 1.0, "rotation": math.pi / 4, "scale": 0.1, "objects": 0}
    after = by_library(**change)(before)
    assert not torch.allclose(after["boxes"], before["boxes"])
    held = 0
    for row in range(6):
        assert len(part(after, "points", row)) == len(part(before, "points", row))
        for a, b in zip(boxes_of(before, row), boxes_of(after, row), strict=True):
            grown = np.array([1, 1, 1, 1.02, 1.02, 1.02, 1])
            one = inside(part(before, "points", row).double().numpy(), a * grown).sum()
            two = inside(part(after, "points", row).double().numpy(), b * grown).sum()
            assert abs(int(one) - int(two)) <= 2
            assert 0.9 <= b[3] / a[3] <= 1.1
            assert -math.pi <= b[6] < math.pi
            held += one
    assert held > 100
    near = by_library(range=(0.0, -5.0, -3.0, 15.0, 5.0, 1.0))(before)["points"]
    assert 0 < len(near) < len(before["points"])
    assert near[:, 0].max() < 15


def test_what_cannot_be_pasted_is_named():
    with pytest.raises(BadSetting, match=r"objects must be >= 1 \(got 0\)"):
        ObjectSampling(objects=0, then=STILL)
    with pytest.raises(BadSetting, match=r"objects must be >= 0 \(got -1\)"):
        LibraryAugment(objects=-1, range=FAR)

    def bare(inputs, *, work):
        columns = ReadKitti()(inputs, work=work)
        train = dict(columns["train"])
        train["difficulty"] = Ragged(
            values=torch.full_like(train["difficulty"].values, -1),
            offsets=train["difficulty"].offsets,
        )
        return {**columns, "train": train}

    with pytest.raises(BadData, match=r"train: no object holds 5 points; pasting needs some"):
        made(bare)


@pytest.mark.skipif(not missing(), reason="mmdetection3d is installed")
def test_the_library_is_asked_for_in_one_line():
    with pytest.raises(MissingExtra, match=r"augmentation=mmdet3d needs `mmcv`.*Run: uv sync"):
        recipe(augmentation="mmdet3d")


def recipe(scale="tiny", **settings):
    return make_recipe(NAME, make_settings(NAME, scale, settings))


def test_the_recipe_pastes_where_it_is_told_to():
    off, on = recipe(), recipe(gt_sampling=3)
    assert isinstance(off.stage("data").make, ReadKitti)
    assert isinstance(off.stage("both-0").augment, SceneAugment)
    data, student = on.stage("data"), on.stage("both-0")
    assert isinstance(data, Make)
    assert isinstance(student, Train)
    assert data.make == WithGroundTruthSamples(make=ReadKitti(), samples=6)
    assert student.augment == ObjectSampling(objects=3, then=off.stage("both-0").augment)
    mixed, pasted = (recipe(scale).stage("data").make for scale in ("small", "paper"))
    assert isinstance(mixed, WithCameraImages)
    assert isinstance(mixed.make, ReadMixed)
    assert isinstance(pasted, WithCameraImages)
    assert isinstance(pasted.make, WithGroundTruthSamples)
    assert pasted.make.samples == 30


@both
def test_a_detector_learns_from_pasted_scenes(tmp_path, sampling):
    stage = recipe(students=["alone"], steps=2, batch=2).stage("alone-0")
    torch.manual_seed(0)
    models = {role: spec.new() for role, spec in stage.fresh.items()}
    before = {name: value.clone() for name, value in models["student"].state_dict().items()}
    setup = Setup(steps=2, batch=2, augment=sampling(), views=3)
    context = Context(
        stage="alone-0", out=tmp_path, checkpoints=tmp_path / "c", caches=tmp_path / "t"
    )
    fit(stage.objective, models, TensorData(made()["train"]), setup=setup, ctx=context)
    after = models["student"].state_dict()
    assert all(torch.isfinite(value.float()).all() for value in after.values())
    assert any(not torch.equal(before[name], value) for name, value in after.items())


@library
def test_the_library_cuts_clouds_to_what_the_detector_sees():
    plain = recipe(augmentation="mmdet3d", x=(0.0, 17.6), y=(-8.8, 8.8))
    assert plain.stage("both-0").augment.range == (0, -8.8, -3, 17.6, 8.8, 1)
    stock = {
        "teacher_model": "pointpillars-kitti",
        "student": "pointpillars-kitti/4",
        "student16": "pointpillars-kitti/16",
    }
    augment = recipe(augmentation="mmdet3d", **stock).stage("both-0").augment
    assert augment.range == (0, -39.68, -3, 69.12, 39.68, 1)
    # a point that the plain detectors of the scale do not see stays
    rows = batch(count=1, view=1)
    rows["points"][0] = torch.tensor([50.0, 30.0, -1.0, 0.5])
    still = replace(augment, flip=0.0, rotation=0.0, scale=0.0)
    assert (still(rows)["points"] == rows["points"][0]).all(dim=1).any()
    assert len(by_library(objects=0, range=None)(rows)["points"]) == len(rows["points"])
