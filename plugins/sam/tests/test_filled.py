"""A decoder that learns to fill boxes without an image."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn

from stillhouse.errors import BadSetting
from stillhouse.objectives.objective import Optimizer, Phase
from stillhouse_sam.filled import SMALLEST, FillBoxes, drawn_boxes, filled
from stillhouse_sam.models import Shape, decoder_named, prompts_named
from stillhouse_sam.prompts import boxes_of

SHAPE = Shape(size=64, grid=8, channels=32, heads=2, mlp=64)
FILL = FillBoxes(
    phases={"boxes": Phase(trains=("prompts", "decoder"), optimizer=Optimizer(lr=4e-3))},
    grid=8,
    channels=32,
    boxes=4,
)


def batch(count: int, fill: int = 0) -> dict[str, Tensor]:
    return {"images": torch.full((count, 3, 64, 64), fill, dtype=torch.uint8)}


def small_roles() -> dict[str, nn.Module]:
    return {
        "prompts": prompts_named(shape=SHAPE).new(),
        "decoder": decoder_named(shape=SHAPE).new(),
    }


def test_cells_whose_middle_is_in_the_box() -> None:
    boxes = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.4, 0.6, 1.6, 1.4], [3.0, 3.0, 3.0, 4.0]])

    masks = filled(boxes, 4)

    assert boxes_of(masks).tolist() == [[1, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert masks[0].sum() == 4
    assert filled(torch.tensor([[0.4, 0.4, 1.6, 1.4]]), 4)[0, 0, :2].tolist() == [True, True]


def test_boxes_lie_in_the_frame_and_are_of_all_sizes() -> None:
    boxes = drawn_boxes(2000, 64, rng=Generator().manual_seed(0))

    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    assert sides.min() >= 64 * SMALLEST * 0.999
    # uniform in the logarithm: as many between 2 and 4 pixels as between 32 and 64
    shares = [((sides >= low) & (sides < 2 * low)).float().mean() for low in (2, 4, 8, 16, 32)]
    assert shares == pytest.approx([0.2] * 5, abs=0.02)


def test_the_images_do_not_matter_and_a_seed_draws_the_same() -> None:
    torch.manual_seed(0)
    models = {
        "prompts": prompts_named(shape=SHAPE).new(),
        "decoder": decoder_named(shape=SHAPE).new(),
    }

    def losses(images: dict[str, Tensor], seed: int) -> list[float]:
        rng = Generator().manual_seed(seed)
        found = FILL.terms("boxes", models, images, step=0, steps=1, rng=rng)
        return [found[name].item() for name in ("mask", "iou")]

    assert losses(batch(2), 0) == losses(batch(2, fill=200), 0)
    assert losses(batch(2), 0) != losses(batch(2), 1)


def test_the_same_boxes_are_learnt_by_heart_by_both_roles() -> None:
    torch.manual_seed(0)
    models = small_roles()
    learnt = [p for model in models.values() for p in model.parameters()]
    before = {role: [p.clone() for p in model.parameters()] for role, model in models.items()}
    optimizer = torch.optim.AdamW(learnt, lr=4e-3)
    losses: list[float] = []
    for step in range(150):
        rng = Generator().manual_seed(1)
        terms = FILL.terms("boxes", models, batch(1), step=step, steps=150, rng=rng)
        optimizer.zero_grad()
        (terms["mask"] + terms["iou"]).backward()
        optimizer.step()
        losses.append(terms["mask"].item())

    assert losses[-1] < losses[0] / 3
    for role, model in models.items():
        moved = zip(before[role], model.parameters(), strict=True)
        assert any(not torch.equal(old, new) for old, new in moved), role


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(BadSetting, match=r"boxes must be >= 1 \(got 0\)"):
        replace(FILL, boxes=0)
    with pytest.raises(BadSetting, match="noise"):
        replace(FILL, noise=-1.0)
