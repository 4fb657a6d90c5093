"""What is drawn is what the models say and what the loss chose."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Generator, nn

from stillhouse.data.data import TensorData
from stillhouse.data.shards import load_data, save_data
from stillhouse.errors import BadData, BadSetting
from stillhouse.work import Work
from stillhouse_pointcloud.camera_images import CAMERA_IMAGE, WithCameraImages
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.detectors import SMALL_GRID, Found, model, with_pillars
from stillhouse_pointcloud.figures import (
    COLOURS,
    SHOWN,
    TRUTH,
    BirdsEye,
    ChosenPoints,
    Overlay,
    in_image,
    outlines,
)
from stillhouse_pointcloud.objectives import LocalGraphDistillation
from stillhouse_pointcloud.samples import PROJECTION, scenes


class Says(nn.Module):
    """Finds the true boxes, moved by `by` metres to the front."""

    def __init__(self, by):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by), requires_grad=False)

    def forward(self, batch):
        return {name: batch[name] for name in ("boxes", "boxes_offsets", "labels")}

    def boxes(self, outputs, picking):
        assert picking == SHOWN
        cuts = outputs["boxes_offsets"].diff().tolist()
        moved = outputs["boxes"] + self.by * torch.eye(7)[0]
        pairs = zip(moved.split(cuts), outputs["labels"].split(cuts), strict=True)
        return [Found(boxes=b, scores=torch.ones(len(b)), labels=n) for b, n in pairs]


def columns():
    return ReadKitti()({"source": scenes()}, work=Work.seeded(0))["test"]


DATA = TensorData(columns())
LINES = {"teacher": "teacher", "student L1": "student"}
MODELS = {"teacher": Says(0.0), "student": Says(2.0)}


def lines_of(axis, colour):
    return [line for line in axis.lines if line.get_color() == colour]


def test_a_row_of_the_truth_and_a_row_a_model():
    figure = BirdsEye(lines=LINES, columns=2, seed=3)(MODELS, DATA, work=Work())
    assert [a.get_ylabel() for a in figure.axes if a.get_ylabel()] == ["truth", *LINES]
    assert len(figure.axes) == 6
    batch = next(iter(DATA.batches(2, rng=Generator().manual_seed(3))))
    count = int(batch["boxes_offsets"][1])
    # an outline and a stroke a box
    assert [len(lines_of(figure.axes[i], TRUTH)) for i in (0, 2, 4)] == [2 * count] * 3
    assert [len(figure.axes[i].lines) for i in (0, 2, 4)] == [2 * count, 4 * count, 4 * count]
    points = figure.axes[0].collections[0].get_offsets()
    x, y = batch["points"][: len(points), :2].T
    assert np.asarray(points) == pytest.approx(np.stack([-y, x], axis=1))
    # the student's boxes stand two metres ahead
    label = int(batch["labels"][0])
    first = lines_of(figure.axes[4], TRUTH)[0].get_ydata()
    moved = lines_of(figure.axes[4], COLOURS[label])[0].get_ydata()
    assert moved == pytest.approx(np.asarray(first) + 2, abs=1e-4)


def test_a_box_is_outlined_with_a_stroke_to_its_front():
    axis = Figure().subplots()
    outlines(axis, np.array([[10.0, 3.0, 0.0, 4.0, 2.0, 1.5, np.pi / 2]]), TRUTH)
    around, stroke = axis.lines
    # headed to the left, y, which is drawn as -x
    assert (min(around.get_xdata()), max(around.get_xdata())) == pytest.approx((-5, -1))
    assert (min(around.get_ydata()), max(around.get_ydata())) == pytest.approx((9, 11))
    assert stroke.get_xdata() == pytest.approx([-3, -5])
    assert stroke.get_ydata() == pytest.approx([10, 10])


def test_edges_in_the_image_end_before_the_camera():
    axis = Figure().subplots()
    in_image(axis, np.array([[10.0, 0.0, 0.0, 2.0, 2.0, 2.0, 0.0]]), PROJECTION, TRUTH)
    assert len(axis.lines) == 12
    # the near side is 9 m away: 721.5 * 1 / 9 pixels to each side of the middle
    x = np.concatenate([line.get_xdata() for line in axis.lines])
    assert (x.min(), x.max()) == pytest.approx((609.6 - 721.5 / 9, 609.6 + 721.5 / 9))
    crossing, behind = Figure().subplots(), Figure().subplots()
    in_image(crossing, np.array([[0.0, 0.0, 0.0, 8.0, 2.0, 2.0, 0.0]]), PROJECTION, TRUTH)
    assert len(crossing.lines) == 8  # without the four edges behind
    in_image(behind, np.array([[-9.0, 0.0, 0.0, 8.0, 2.0, 2.0, 0.0]]), PROJECTION, TRUTH)
    assert len(behind.lines) == 0


def test_the_overlay_takes_the_image_where_there_is_one(tmp_path):
    Image.new("RGB", (1242, 375), (9, 8, 7)).save(tmp_path / "a.png")
    make = WithCameraImages(make=Framed(), port="test")
    made = make({"source": tmp_path}, work=Work.seeded(0))
    assert CAMERA_IMAGE not in made["train"]
    save_data(tmp_path / "test", made["test"])
    data = load_data(tmp_path / "test")
    figure = Overlay(lines=LINES)(MODELS, data, work=Work())
    with_image, without = figure.axes[:2]
    assert with_image.images[0].get_array()[0, 0].tolist() == [9, 8, 7]
    assert not with_image.collections
    assert not without.images
    assert len(without.collections) == 1
    # a row a model: the truth, and what it finds in its class's colour
    assert [axis.get_ylabel() for axis in figure.axes[::2]] == list(LINES)
    assert all(lines_of(axis, TRUTH) for axis in figure.axes[::2])
    for spoilt in (b"no image", broken_png()):
        (tmp_path / "a.png").write_bytes(spoilt)
        with pytest.raises(BadData, match=r"a.png: not an? (whole )?image .*; replace it"):
            make({"source": tmp_path}, work=Work())
    # data that hold none
    assert not Overlay(lines=LINES)(MODELS, DATA, work=Work()).axes[0].images
    with pytest.raises(BadSetting, match=r"images: count must be >= 1 \(got 0\)"):
        WithCameraImages(make=Framed(), port="test", count=0)


def broken_png() -> bytes:
    """Of which Pillow says SyntaxError: a chunk that is none."""
    whole = BytesIO()
    Image.new("RGB", (4, 4)).save(whole, "PNG")
    return whole.getvalue()[:33] + b"\0\0\0\1\xff\xff\xff\xff" + bytes(20)


class Framed:
    """Drawn scenes whose first test frame names an image."""

    def __call__(self, inputs, *, work):
        made = ReadKitti()({"source": scenes()}, work=work)
        names = [{"name": str(i), "image": f"{'ab'[i > 0]}.png"} for i in range(24)]
        frames = [json.dumps(name) for name in names]
        return {**made, "test": {**made["test"], "frames": frames}}


@pytest.mark.parametrize("kind", ["per_sample", "concat"])
def test_the_points_of_the_chosen_pillars_carry_their_weight(kind):
    torch.manual_seed(0)
    teacher, student = (
        model(f"pillars-{w}", grid=SMALL_GRID, layers=(0, 0, 0)).new().eval() for w in (8, 4)
    )
    loss = LocalGraphDistillation(8, 4, 4, k=4, num=7, tau=8.0, batch=kind).eval()
    models = {"teacher": teacher, "student": student, "graphs": nn.ModuleList([loss])}
    figure = ChosenPoints(columns=2, seed=1)(models, DATA, work=Work())
    batch = with_pillars(next(iter(DATA.batches(2, rng=Generator().manual_seed(1)))), SMALL_GRID)
    cuts = batch["pillar_counts_offsets"].diff().tolist()
    counts = batch["pillar_counts"].split(cuts)
    drawn = [a.collections[1] for a in figure.axes[:2]]
    if kind == "per_sample":
        for axis, one, has in zip(drawn, loss.chosen, counts, strict=True):
            assert len(axis.get_offsets()) == int(has[one.items].sum())
            assert max(axis.get_array()) == pytest.approx(one.weights.max().item())
            assert one.weights.mean().item() == pytest.approx(1)
    else:
        total = torch.cat(counts)[loss.chosen[0].items].sum()
        assert sum(len(axis.get_offsets()) for axis in drawn) == int(total)
    grey = [len(a.collections[0].get_offsets()) for a in figure.axes[:2]]
    every = sum(grey) + sum(len(axis.get_offsets()) for axis in drawn)
    assert every == len(batch["pillar_points"])


def test_roles_that_cannot_be_drawn_are_named():
    with pytest.raises(BadData, match="role 'teacher': a Says has no pillars to draw"):
        ChosenPoints()(MODELS, DATA, work=Work())
    fresh = model("pillars-4", grid=SMALL_GRID, layers=(0, 0, 0)).new().eval()
    models = {"teacher": fresh, "student": fresh, "graphs": nn.Linear(1, 1)}
    with pytest.raises(BadData, match="role 'graphs': a Linear holds no graph distillation"):
        ChosenPoints()(models, DATA, work=Work())
    with pytest.raises(BadData, match="role 'student': a Linear finds no boxes"):
        BirdsEye(lines={"it": "student"})({"student": nn.Linear(1, 1)}, DATA, work=Work())
