"""Our KITTI AP against mmdetection3d's, on rendered scenes with disturbed truths as findings."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.data.data import TensorData
from stillhouse.runs import project_root
from stillhouse.work import Work
from stillhouse_pointcloud.boxes import CLASSES, image_heights
from stillhouse_pointcloud.data import ReadKitti, from_arrays
from stillhouse_pointcloud.formats import IMAGE_SIZE
from stillhouse_pointcloud.metrics import KittiAp, Scene
from stillhouse_pointcloud.mmdet import kitti_ap
from stillhouse_pointcloud.mmdet.library import missing
from stillhouse_pointcloud.samples import SMALL_LIDAR, SMALL_STREET, Lidar, Street, render

pytestmark = pytest.mark.skipif(
    bool(missing()), reason=f"{missing()} is not installed: uv sync --extra pointcloud-mmdet3d"
)
KITTI = project_root(Path(__file__).parent) / "data" / "kitti-mini"


def frames(count: int, lidar: Lidar = SMALL_LIDAR, street: Street = SMALL_STREET):
    drawn = render(count, seed=11, lidar=lidar, street=street)
    columns = from_arrays({f"test_{name}": value for name, value in drawn.items()}, "test")
    return TensorData(columns).rows(torch.arange(count))


def disturbed(
    batch: dict[str, torch.Tensor], *, seed: int, doubles: bool = False
) -> list[tuple[torch.Tensor, ...]]:
    """Truths moved, turned, resized or dropped, some twice, some of another class, and clutter;
    with `doubles` each again, lower and of another class.
    """
    rng = torch.Generator().manual_seed(seed)
    found = []
    for start, stop in batch["boxes_offsets"].unfold(0, 2, 1).tolist():
        boxes, labels = batch["boxes"][start:stop], batch["labels"][start:stop]
        twice = torch.rand(len(boxes), generator=rng) < 0.3
        boxes, labels = torch.cat([boxes, boxes[twice]]), torch.cat([labels, labels[twice]])
        scale = torch.tensor([0.25, 0.12, 0.08, 0.2, 0.08, 0.08, 0.08])
        boxes = boxes + scale * torch.randn(boxes.shape, generator=rng)
        far = boxes[:2] + torch.tensor([6.0, 5.0, 0, 0, 0, 0, 0])
        boxes, labels = torch.cat([boxes, far]), torch.cat([labels, labels[:2]])
        mistaken = torch.rand(len(boxes), generator=rng) < 0.1
        labels = torch.where(mistaken, (labels + 1) % len(CLASSES), labels)
        kept = torch.rand(len(boxes), generator=rng) < 0.85
        scores = torch.rand(len(boxes), generator=rng)
        one = (boxes[kept], scores[kept], labels[kept])
        if doubles:
            flat = one[0] * torch.tensor([1, 1, 1, 1, 1, 0.55, 1])
            again = (flat, one[1].flip(0), (one[2] + 1) % len(CLASSES))
            one = tuple(torch.cat(pair) for pair in zip(one, again, strict=True))
        found.append(one)
    return found


def real_frames() -> dict[str, torch.Tensor]:
    """The labelled frames of data/kitti-mini, whatever their split."""
    made = ReadKitti(validation=0.5)({"source": KITTI}, work=Work.seeded(0))
    return TensorData(made["train"]).rows(torch.arange(5))


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "rendered",
        "far",
        pytest.param(
            "real",
            marks=[
                pytest.mark.data,
                pytest.mark.skipif(
                    not KITTI.is_dir(),
                    reason=f"{KITTI} not found. Run: uv run dvc pull data.dvc",
                ),
            ],
        ),
    ],
)
def test_ours_is_mmdetection3ds(source):
    match source:
        case "rendered":
            batch = frames(5)
            batch["difficulty"][::5] = -1  # some that count neither for nor against
        case "far":  # in whose place is also a low one of another class
            batch = frames(5, Lidar(), Street(near=10.0))
        case _:
            batch = real_frames()
    found = disturbed(batch, seed=3, doubles=source == "far")
    theirs = kitti_ap(batch, found)

    def part(name: str, row: int) -> np.ndarray:
        start, stop = batch[f"{name}_offsets"][row : row + 2].tolist()
        return batch[name][start:stop].numpy()

    scenes = []
    for row, (boxes, scores, labels) in enumerate(found):
        there = boxes.double().numpy()
        projection = batch["projection"][row].double().numpy()
        scenes.append(
            Scene(
                boxes=part("boxes", row).astype(np.float64),
                labels=part("labels", row),
                difficulty=part("difficulty", row),
                ignored=part("ignored", row).astype(np.float64),
                ignored_labels=part("ignored_labels", row),
                found=there,
                scores=scores.double().numpy(),
                predicted=labels.numpy(),
                heights=image_heights(there, projection, IMAGE_SIZE[1]),
            )
        )
    ours = KittiAp().of(scenes)
    both = {name: (ours[name], theirs[name]) for name in theirs if name in ours}
    if source != "real":
        assert len(both) == 2 * 3 * len(CLASSES)
    # single precision over there
    gaps = {name: pair for name, pair in both.items() if abs(pair[0] - pair[1]) > 1e-6}
    assert not gaps
    # neither all nor nothing was found
    assert 0 < ours["mean_3d_moderate_ap"] < ours["mean_bev_moderate_ap"] < 1


@pytest.mark.slow
def test_true_boxes_find_themselves():
    batch = frames(6)
    spans = batch["boxes_offsets"].unfold(0, 2, 1).tolist()
    # its overlap of two boxes that are quite the same may be 0: corners on corners
    labels, boxes = batch["labels"], batch["boxes"] + 0.01
    found = [
        (boxes[start:stop], torch.linspace(1, 0.5, stop - start), labels[start:stop])
        for start, stop in spans
    ]
    scores = kitti_ap(batch, found)
    counts = torch.bincount(labels[batch["difficulty"].ge(0)], minlength=3)
    assert counts.min() > 1
    for label, name in enumerate(CLASSES):
        # n true boxes give n thresholds, the first of which is recall 0 and not counted
        expected = max(0, min(int(counts[label]), 41) - 1) / 40
        assert scores[f"{name.lower()}_3d_hard_ap"] == pytest.approx(expected)
