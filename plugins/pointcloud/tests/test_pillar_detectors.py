"""Pillars, anchors, losses by hand; the published sizes; that a detector learns; what is refused."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from stillhouse.data.data import TensorData, rows_of
from stillhouse.digest import digest
from stillhouse.errors import BadData, BadRecipe, BadSetting, UnknownName
from stillhouse.objectives.features import hint_loss
from stillhouse.objectives.objective import Optimizer, Phase, Weighted
from stillhouse.objectives.term import Term
from stillhouse.stages import Train
from stillhouse.work import Work
from stillhouse_pointcloud.data import ReadKitti
from stillhouse_pointcloud.detectors import (
    SMALL_GRID,
    Detection,
    Picking,
    PillarGrid,
    model,
    pillars,
    with_pillars,
)
from stillhouse_pointcloud.detectors.anchors import (
    BACKGROUND,
    SKIPPED,
    anchors,
    assigned,
    decode,
    encode,
    half_of,
    nearest_iou,
)
from stillhouse_pointcloud.detectors.detection import (
    box_loss,
    direction_loss,
    focal_loss,
    with_targets,
)
from stillhouse_pointcloud.detectors.found import suppressed
from stillhouse_pointcloud.metrics import KittiAp
from stillhouse_pointcloud.samples import scenes

# four cells of a metre
TOY = PillarGrid(x=(0.0, 2.0), y=(-1.0, 1.0), z=(-3.0, 1.0), cell=1.0, max_points=2)
PHASES = {"learn": Phase(trains=("student",), optimizer=Optimizer(lr=1e-3))}


def columns(split="train"):
    return ReadKitti()({"source": scenes()}, work=Work.seeded(0))[split]


def batch(count=4):
    return next(iter(TensorData(columns()).batches(count, rng=None)))


def small(name="pillars-8", **given):
    return model(name, grid=SMALL_GRID, layers=(1, 1, 1), momentum=0.1, **given).new()


@pytest.mark.parametrize(("width", "millions"), [(64, 4.83), (32, 1.22), (16, 0.31)])
def test_the_published_detector_and_its_students_have_the_published_sizes(width, millions):
    module = model(f"pillars-{width}", grid=PillarGrid()).new()
    count = sum(p.numel() for p in module.parameters())
    assert round(count / 1e6, 2) == millions
    if width == 64:  # pillars, three blocks, neck, head
        assert count == 704 + 147_968 + 812_544 + 3_247_104 + 598_784 + 27_720


def test_pillars_by_hand():
    points = torch.tensor(
        [
            [0.2, -0.5, 0.0, 0.1],
            [1.5, 0.5, 0.0, 0.2],  # another cell
            [0.6, -0.1, 1.0, 0.3],  # too high
            [0.4, -0.7, -1.0, 0.4],
            [0.9, -0.9, -2.0, 0.5],  # a third point of the first cell
            [2.0, 0.0, 0.0, 0.6],  # beyond
            [1.5, 0.5, 0.0, 0.7],  # of the second cloud
        ]
    )
    made = pillars(points, torch.tensor([0, 6, 7]), TOY)
    assert made["pillar_cells"].tolist() == [[0, 0], [1, 1], [1, 1]]
    assert made["pillar_counts"].tolist() == [2, 1, 1]
    assert made["pillar_cells_offsets"].tolist() == [0, 2, 3]
    assert made["pillar_points_offsets"].tolist() == [0, 3, 4]
    first = [0.2, -0.5, 0.0, 0.1, -0.1, 0.1, 0.5, -0.3, 0.0]
    assert made["pillar_points"][0] == pytest.approx(torch.tensor(first), abs=1e-6)
    alone = [1.5, 0.5, 0.0, 0.7, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert made["pillar_points"][3] == pytest.approx(torch.tensor(alone), abs=1e-6)


def test_of_too_many_pillars_the_fullest_stay():
    grid = PillarGrid(x=(0.0, 3.0), y=(0.0, 1.0), z=(-3.0, 1.0), cell=1.0, max_pillars=2)
    x = torch.tensor([0.5, 1.5, 1.5, 2.5, 2.5, 2.5])
    points = torch.stack([x, torch.full_like(x, 0.5), 0 * x, 0 * x], dim=1)
    made = pillars(points, torch.tensor([0, 6]), grid)
    assert made["pillar_cells"][:, 1].tolist() == [1, 2]
    assert made["pillar_counts"].tolist() == [2, 3]
    assert made["pillar_points"][:, 0].tolist() == [1.5, 1.5, 2.5, 2.5, 2.5]


def test_the_pillars_of_a_cloud_are_its_own_and_made_once():
    whole = with_pillars(batch(), SMALL_GRID)
    assert with_pillars(whole, SMALL_GRID) is whole
    one = with_pillars(rows_of(batch(), torch.tensor([2])), SMALL_GRID)
    picked = rows_of(whole, torch.tensor([2]))
    assert set(one) == set(picked)
    for name, column in one.items():
        assert torch.equal(column, picked[name]), name


def test_the_same_cloud_gives_the_same_maps_in_any_batch():
    torch.manual_seed(0)
    module = small().eval()
    with torch.no_grad():
        whole, one = module(batch()), module(rows_of(batch(), torch.tensor([2])))
    assert torch.allclose(whole["cls"][2], one["cls"][0], atol=1e-5)
    start, stop = whole["voxel_offsets"][2:4].tolist()
    assert torch.allclose(whole["voxels"][start:stop], one["voxels"], atol=1e-5)
    # the canvas holds each pillar at its cell and nothing else
    assert whole["bev"].shape == (4, 8, 64, 64)
    cells = with_pillars(batch(), SMALL_GRID)["pillar_cells"][start:stop]
    at = whole["bev"][2][:, cells[:, 0], cells[:, 1]].mT
    assert torch.equal(at, whole["voxels"][start:stop])
    assert whole["bev"].abs().sum().item() == pytest.approx(whole["voxels"].sum().item(), rel=1e-4)


def test_a_pillar_is_the_maximum_of_its_points():
    torch.manual_seed(0)
    encoder = small().voxels.eval()
    points = torch.randn(5, 9)
    both = encoder(points, torch.tensor([2, 3]))
    each = encoder(points, torch.ones(5, dtype=torch.long))
    assert torch.equal(both, torch.stack([each[:2].amax(0), each[2:].amax(0)]))


def test_anchors_stand_at_the_middles_in_the_order_of_the_map():
    at = anchors(TOY, 1).reshape(2, 2, 3, 2, 7)
    assert at[1, 0, 0, 0, :2].tolist() == [0.5, 0.5]
    assert at[0, 1, 2, 1, :2].tolist() == [1.5, -0.5]
    car, walker = at[0, 0, 0, 1], at[0, 0, 1, 0]
    assert car[3:].tolist() == pytest.approx([3.9, 1.6, 1.56, math.pi / 2])
    assert (car[2] - car[5] / 2).item() == pytest.approx(-1.73)
    assert walker[3:].tolist() == pytest.approx([0.8, 0.6, 1.73, 0])
    with pytest.raises(BadSetting, match="2 x 2 cells do not divide by the head's stride, 4"):
        anchors(TOY, 4)


def test_encoding_by_hand_and_back():
    at = torch.tensor([[10.0, 0.0, -1.0, 4.0, 3.0, 2.0, 0.0]])
    box = torch.tensor([[11.0, 2.0, 0.0, 8.0, 3.0, 1.0, 0.5]])
    expected = [0.2, 0.4, 0.5, math.log(2), 0.0, -math.log(2), 0.5]
    assert encode(box, at)[0].tolist() == pytest.approx(expected)
    torch.manual_seed(0)
    boxes = torch.cat(
        [torch.randn(50, 3), torch.rand(50, 3) + 0.5, 3.1 * (2 * torch.rand(50, 1) - 1)], 1
    )
    for yaw in (0.0, math.pi / 2):
        many = torch.cat([torch.zeros(50, 3), torch.ones(50, 3), torch.full((50, 1), yaw)], 1)
        again = decode(encode(boxes, many), half_of(boxes[:, 6]), many)
        assert torch.allclose(again, boxes, atol=1e-5)
        # a half turn in the difference changes nothing, since the loss cannot see it
        turned = encode(boxes, many)
        turned[:, 6] += math.pi
        assert torch.allclose(decode(turned, half_of(boxes[:, 6]), many), boxes, atol=1e-5)


def test_halves_of_headings():
    degrees = torch.tensor([-46.0, -44.0, 0.0, 90.0, 134.0, 136.0, 180.0, -180.0])
    assert half_of(degrees * math.pi / 180).tolist() == [1, 0, 0, 0, 0, 1, 1, 1]


def test_nearest_iou_by_hand():
    car = torch.tensor([[0.0, 0.0, 0.0, 4.0, 2.0, 1.0, 0.3]])
    across = torch.tensor([[0.0, 0.0, 0.0, 4.0, 2.0, 1.0, 1.4]])
    assert nearest_iou(car, car).item() == pytest.approx(1)
    assert nearest_iou(car, across).item() == pytest.approx(4 / 12)


def line(*x, size=(4.0, 2.0, 1.5)):
    """Boxes side by side along x."""
    return torch.tensor([[place, 0.0, 0.0, *size, 0.0] for place in x])


def test_targets_by_hand():
    # anchors in the order class, heading; IoUs of a shift s of length 4 are (4 - s) / (4 + s)
    at = torch.cat([line(shift, 50.0, 0.0, 0.0, 0.0, 0.0) for shift in (0.9, 1.1, 2.0, 0.0)])
    none = torch.zeros(0, 7)
    truth, labels = line(0.0), torch.tensor([0])
    said, which = assigned(at, truth, labels, none)
    # .63 matched; .57 between; .33 background; 1 matched; other headings and classes background
    assert said.reshape(4, 6)[:, 0].tolist() == [0, SKIPPED, BACKGROUND, 0]
    assert (said.reshape(4, 6)[:, 1:] == BACKGROUND).all()
    assert which.tolist() == [0] * 24
    # of a class with another anchor far off, the best one is taken, however little it shares
    said, _ = assigned(at, line(53.0), labels, none)
    assert (said == 0).nonzero()[:, 0].tolist() == [1, 7, 13, 19]
    # where it would be background but a Van stands, nothing is asked
    said, _ = assigned(at, none, torch.zeros(0, dtype=torch.long), line(0.0))
    assert said.reshape(4, 6)[:, 0].tolist() == [SKIPPED, SKIPPED, BACKGROUND, SKIPPED]


def test_an_anchor_answers_for_the_box_it_shares_most_with():
    at = torch.cat([line(0.0, 50.0, 0.0, 0.0, 0.0, 0.0), line(1.0, 50.0, 0.0, 0.0, 0.0, 0.0)])
    said, which = assigned(at, line(9.0, 1.1, -0.1), torch.tensor([1, 0, 0]), torch.zeros(0, 7))
    assert said[[0, 6]].tolist() == [0, 0]
    assert which[[0, 6]].tolist() == [2, 1]


def test_losses_by_hand():
    labels = torch.tensor([[0, BACKGROUND, SKIPPED]])
    logits = torch.zeros(1, 3, 3)
    logits[0, 2] = 7.0  # skipped
    # p = 1/2 everywhere: (1 of 1/4, 2 of 3/4) + 3 of 3/4, times 1/4 log 2, over one match
    expected = (0.25 + 5 * 0.75) * 0.25 * math.log(2)
    assert focal_loss(logits, labels).item() == pytest.approx(expected)
    found = torch.zeros(1, 3, 7)
    target = found.clone()
    target[0, 0, 0], target[0, 0, 6], target[0, 1, 3] = 1.0, math.pi + 0.1, 9.0
    # 1 - beta / 2, and sin(0.1)^2 / (2 beta)
    expected = 1 - 1 / 18 + math.sin(0.1) ** 2 * 4.5
    assert box_loss(found, target, labels).item() == pytest.approx(expected, rel=1e-5)
    halves = torch.tensor([[1, 0, 0]])
    pair = torch.tensor([[[0.0, 1.0], [9.0, 0.0], [0.0, 9.0]]])
    expected = F.softplus(torch.tensor(-1.0)).item()
    assert direction_loss(pair, halves, labels).item() == pytest.approx(expected)


def test_without_a_match_only_the_background_is_learned():
    labels = torch.full((1, 2), BACKGROUND)
    assert focal_loss(torch.zeros(1, 2, 3), labels).item() > 0
    found = torch.zeros(1, 2, 7, requires_grad=True)
    loss = box_loss(found, torch.ones(1, 2, 7), labels)
    loss = loss + direction_loss(found[..., :2], torch.zeros(1, 2, dtype=torch.long), labels)
    loss.backward()
    assert loss.item() == 0
    assert (found.grad == 0).all()


def test_boxes_outside_the_grid_ask_nothing_and_a_cloud_without_boxes_has_targets():
    given = {
        "boxes": torch.tensor([[99.0, 0.0, 0.0, 4.0, 2.0, 1.5, 0.0]]),
        "boxes_offsets": torch.tensor([0, 1, 1]),
        "labels": torch.tensor([0]),
        "labels_offsets": torch.tensor([0, 1, 1]),
        "ignored": torch.zeros(0, 7),
        "ignored_offsets": torch.tensor([0, 0, 0]),
    }
    made = with_targets(given, SMALL_GRID, 2)
    assert (made["target_labels"] == BACKGROUND).all()
    assert made["target_boxes"].shape == (2, 32 * 32 * 6, 7)
    broken = {**given, "boxes": given["boxes"] * float("nan")}
    with pytest.raises(BadData, match="a box of cloud 0 is not finite"):
        with_targets(broken, SMALL_GRID, 2)


def test_of_boxes_that_overlap_the_most_confident_stays():
    boxes = line(0.0, 1.0, 10.0, 4.5).double().numpy()
    # the second shares with the first; the fourth with the second alone, which is gone
    assert suppressed(boxes, 0.1).tolist() == [0, 2, 3]
    assert suppressed(boxes, 0.9).tolist() == [0, 1, 2, 3]
    assert suppressed(np.zeros((0, 7)), 0.1).tolist() == []


HINT = {"hint": Weighted(term=Term(hint_loss, "student.cls", "teacher.cls"))}


def trained(module, rows, steps, *, models=None, **given):
    """The first and the last value of the whole loss."""
    objective = Detection(phases=PHASES, grid=SMALL_GRID, **given)
    models = {"student": module, **(models or {})}
    learned = [p for m in models.values() for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=5e-3)
    values = []
    for step in range(steps):
        terms = objective.terms("learn", models, rows, step=step, steps=steps, rng=Generator())
        loss = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values[0], values[-1], terms


def test_what_a_detector_learns_is_composed_once_and_is_no_part_of_the_digest():
    objective, fresh = (Detection(phases=PHASES, grid=SMALL_GRID) for _ in range(2))
    assert objective.composed is objective.composed
    assert objective == fresh
    assert digest(objective) == digest(fresh)


def test_a_role_that_a_term_reads_and_the_stage_lacks_is_refused():
    objective = Detection(phases=PHASES, grid=SMALL_GRID, losses=HINT)
    with pytest.raises(UnknownName, match="a term reads: unknown role 'teacher'"):
        Train(
            name="student",
            objective=objective,
            inputs={"data": "data.train", "student": "first.student"},
            steps=1,
            batch=1,
        )


def test_a_detector_learns_a_few_scenes():
    torch.manual_seed(0)
    module, rows = small("pillars-16"), batch(2)
    first, last, terms = trained(module, rows, 120)
    assert set(terms) == {"cls", "box", "dir"}
    assert last < first / 20
    two = _Head(TensorData(columns()), 2)
    scores = KittiAp(sampling="exact")({"student": module.eval()}, two, work=Work())
    assert scores["mean_3d_hard_exact_ap"] > 0.9


class _Head:
    """The first rows of data."""

    def __init__(self, data, count):
        self.data, self.count = data, count

    def __len__(self):
        return self.count

    def batches(self, size, *, rng):
        yield from (self.data.rows(part) for part in torch.arange(self.count).split(size))


def test_a_teacher_reads_the_students_pillars_and_is_left_alone():
    torch.manual_seed(0)
    teacher, student = small("pillars-16").eval().requires_grad_(False), small()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    first, last, terms = trained(
        student,
        batch(2),
        20,
        models={"teacher": teacher},
        losses=HINT,
    )
    assert set(terms) == {"cls", "box", "dir", "hint"}
    assert last < first
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_training_needs_points_and_evaluation_does_not():
    torch.manual_seed(0)
    module = small()
    far = {"points": torch.tensor([[-9.0, 0.0, 0.0, 0.0]]), "points_offsets": torch.tensor([0, 1])}
    with pytest.raises(BadData, match="0 point\\(s\\) of the batch are in the grid's range"):
        module(far)
    found = module.eval().boxes(module(far), Picking(score=0.9))
    assert len(found) == 1
    assert found[0].boxes.shape == (0, 7)


def test_what_cannot_be_used_is_named():
    with pytest.raises(
        UnknownName, match="unknown detector 'pilars-64'. Did you mean 'pillars-64'"
    ):
        model("pilars-64", grid=PillarGrid())
    with pytest.raises(BadSetting, match="whole cells of 0.5 m \\(got 4.400 of them\\)"):
        PillarGrid(x=(0.0, 2.2), y=(-1.0, 1.0), cell=0.5)
    with pytest.raises(BadSetting, match="2 x 2 cells do not divide by the strides' product, 8"):
        model("pillars-8", grid=TOY)
    other = model("pillars-8", grid=PillarGrid(x=(0.0, 8.0), y=(-4.0, 4.0), cell=1.0)).new()
    with pytest.raises(BadSetting, match="teacher and student need one grid"):
        trained(small(), batch(1), 1, models={"teacher": other}, losses=HINT)
    with pytest.raises(BadRecipe, match="trains 'student', which no term reads; they read pupil"):
        trained(small(), batch(1), 1, student="pupil")
    points = torch.full((3, 4), float("nan"))
    points[0] = 0
    given = {"points": points, "points_offsets": torch.tensor([0, 1, 3])}
    with pytest.raises(BadData, match="a point of cloud 1 is not finite"):
        small()(given)
