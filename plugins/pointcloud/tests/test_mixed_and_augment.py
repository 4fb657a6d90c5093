"""Scenes mixed with real frames, and what an augmentation does to points and boxes."""

import math

import numpy as np
import pytest
import torch

from stillhouse.data.data import TensorData, rows_of
from stillhouse.errors import BadSetting
from stillhouse.work import Work
from stillhouse_pointcloud.augment import SceneAugment, moved
from stillhouse_pointcloud.boxes import inside
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.mixed import ReadMixed, joined
from stillhouse_pointcloud.samples import SMALL_LIDAR, SMALL_STREET, scenes

READ = ReadKitti()


def made(**given):
    settings = {"scenes": 6, "held_out": 4, "lidar": SMALL_LIDAR, "street": SMALL_STREET, **given}
    make = ReadMixed(read=READ, **settings)
    return make({"source": scenes()}, work=Work.seeded(0))


def batch(count=3, view=1):
    columns = READ({"source": scenes()}, work=Work.seeded(0))["train"]
    rows = TensorData(columns).rows(torch.arange(count))
    return {**rows, "view": torch.full((count,), view)}


def part(rows, name, row):
    start, stop = rows[f"{name}_offsets"][row : row + 2].tolist()
    return rows[name][start:stop]


def test_ports_hold_real_frames_and_scenes_and_no_scene_twice():
    found, real = made(copies=2), READ({"source": scenes()}, work=Work.seeded(0))
    count = len(real["train"]["frames"])
    assert len(found["train"]["frames"]) == 2 * count + 6
    assert len(found["test"]["frames"]) == 4
    assert len(found["validation"]["frames"]) == len(real["validation"]["frames"]) + 1
    assert found["real"]["frames"] == real["test"]["frames"]
    train = TensorData(found["train"])
    first, again = train.rows(torch.tensor([0])), train.rows(torch.tensor([count]))
    assert torch.equal(first["points"], again["points"])
    assert first["id"] != again["id"]  # so that their augmentations differ
    drawn = [TensorData(found[port]) for port in ("train", "validation", "test")]
    sums = [
        rows["points"].double().sum().item()
        for one, start in zip(drawn, (2 * count, len(real["validation"]["frames"]), 0), strict=True)
        for rows in (one.rows(torch.tensor([i])) for i in range(start, len(one)))
    ]
    assert len(set(sums)) == 6 + 1 + 4
    assert torch.equal(made(copies=2)["test"]["points"].values, found["test"]["points"].values)
    assert not torch.equal(made(seed=1)["test"]["labels"].values, found["test"]["labels"].values)


def test_joined_rows_are_those_of_the_parts():
    one, two = made()["test"], made(seed=3)["test"]
    both = TensorData(joined([one, two]))
    for row, (source, at) in enumerate(
        [*((one, i) for i in range(4)), *((two, i) for i in range(4))]
    ):
        expected = TensorData(source).rows(torch.tensor([at]))
        found = both.rows(torch.tensor([row]))
        for name in ("points", "boxes", "labels", "projection", "ignored_offsets"):
            assert torch.equal(found[name], expected[name])


def test_view_0_is_the_scene_and_others_are_their_ids_and_views_alone():
    rows = batch(view=0)
    same = SceneAugment()(rows)
    assert torch.equal(same["points"], rows["points"])
    assert torch.equal(same["boxes"], rows["boxes"])
    whole = SceneAugment()(batch(view=1))
    one = SceneAugment()(rows_of(batch(view=1), torch.tensor([2])))
    assert torch.equal(part(whole, "points", 2), one["points"])
    other = SceneAugment()(batch(view=2))
    assert not torch.allclose(other["points"], whole["points"])
    assert not torch.equal(SceneAugment(seed=1)(batch())["points"], whole["points"])


def test_points_stay_in_their_boxes_as_deep_as_they_were():
    before, after = batch(8), SceneAugment(scale=0.1)(batch(8))
    held = 0
    for row in range(8):
        for a, b in zip(part(before, "boxes", row), part(after, "boxes", row), strict=True):
            grown = np.array([1, 1, 1, 1.02, 1.02, 1.02, 1])  # float32 at a surface
            one, two = (
                inside(part(rows, "points", row).double().numpy(), box.double().numpy() * grown)
                for rows, box in ((before, a), (after, b))
            )
            assert (one == two).mean() > 0.999
            held += one.sum()
            assert -math.pi <= b[6] < math.pi
    assert held > 100
    assert torch.equal(before["labels"], after["labels"])


def test_a_box_by_hand():
    box = torch.tensor([[2.0, 1.0, -1.0, 4.0, 2.0, 1.5, 0.5]])
    # mirrored to y = -1 and yaw -0.5, a quarter turn to (1, 2), times 1.1
    found = moved(box, flip=True, angle=math.pi / 2, factor=1.1)
    expected = [1.1, 2.2, -1.1, 4.4, 2.2, 1.65, math.pi / 2 - 0.5]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)
    point = moved(torch.tensor([[2.0, 1.0, -1.0, 0.3]]), flip=True, angle=math.pi / 2, factor=1.1)
    assert point[0].tolist() == pytest.approx([1.1, 2.2, -1.1, 0.3], abs=1e-6)


def test_without_change_nothing_moves():
    rows = batch()
    still = SceneAugment(flip=0.0, rotation=0.0, scale=0.0)(rows)
    assert torch.equal(still["points"], rows["points"])
    assert torch.equal(still["boxes"], rows["boxes"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 2.0}, "flip must be >= 0 and <= 1 \\(got 2.0\\)"),
        ({"rotation": 45.0}, "rotation must be >= 0 and <= pi radians \\(got 45.0\\)"),
        ({"scale": 1.0}, "scale must be >= 0 and < 1"),
    ],
)
def test_what_cannot_be_drawn_is_named(settings, message):
    with pytest.raises(BadSetting, match=message):
        SceneAugment(**settings)


def test_no_scene_is_named():
    with pytest.raises(BadSetting, match="scenes, held_out and copies must be >= 1"):
        ReadMixed(read=READ, scenes=0, held_out=1)
