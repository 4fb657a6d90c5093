"""What is drawn is what the models say, of photos that may be shown, with their credit."""

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, nn

from stillhouse.data.data import Ragged, TensorData
from stillhouse.errors import BadData, BadRecipe, BadSetting
from stillhouse.objectives.objective import Tensors
from stillhouse.work import Work
from stillhouse_sam.annotated import PUBLISHABLE, credit_of
from stillhouse_sam.drawing import colour_at, colours, painted
from stillhouse_sam.everything import EverythingSettings
from stillhouse_sam.figures import SIDE, Clicks, EverythingMasks, Masks
from stillhouse_sam.formats import of_mask
from stillhouse_sam.metrics import click_ious
from stillhouse_sam.models import SamNetwork, Shape, named
from stillhouse_sam.prompts import boxes_of, pack_masks

SHAPE = Shape(size=64, grid=8, channels=32, heads=2, mlp=64)
LICENCES = (4, 1, None, 5)
EASY = EverythingSettings(
    points_per_side=4,
    pred_iou_thresh=-9.0,
    stability_score_thresh=0.0,
    high_confidence=float("-inf"),
)


class Filled(nn.Module):
    """Answers each box by itself, filled: all three masks."""

    def forward(self, batch: Tensors) -> dict[str, torch.Tensor]:
        corners = batch["point_coords"].flatten(2) / 2
        left, top, right, bottom = corners[..., None, None].unbind(2)
        y, x = torch.arange(32)[:, None] + 0.5, torch.arange(32)[None] + 0.5
        mask = 20.0 * ((x > left) & (x < right) & (y > top) & (y < bottom)) - 10
        return {
            "logits": mask[:, :, None].repeat(1, 1, 3, 1, 1),
            "iou": torch.zeros(*mask.shape[:2], 3),
        }


def known(row: int, height: int, width: int) -> str:
    """Photo `row`'s annotations, with one object: its left half."""
    mask = np.zeros((height, width), dtype=bool)
    mask[:, : width // 2] = True
    return json.dumps(
        {
            "name": f"{row}",
            "height": height,
            "width": width,
            "licence": LICENCES[row],
            "credit": "" if LICENCES[row] is None else f"photographer {row}",
            "objects": [of_mask(mask)],
        }
    )


def objects() -> TensorData:
    """Grey images of 64 x 48 with an object of 24 x 32 pixels and one of 16 x 16."""
    masks = torch.zeros(4, 2, 32, 32, dtype=torch.bool)
    masks[:, 0, 4:20, 2:14] = True
    masks[:, 1, 22:30, 14:22] = True
    return TensorData(
        {
            "images": torch.full((4, 3, 64, 64), 100, dtype=torch.uint8),
            "sizes": torch.tensor([[64, 48]] * 4),
            "masks": pack_masks(masks),
            "mask_valid": masks.flatten(2).any(2),
            "boxes": 2 * boxes_of(masks),
            "annotations": [known(row, 64, 48) for row in range(4)],
        }
    )


def photos() -> TensorData:
    rng = Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (4 * 40 * 56, 3), generator=rng, dtype=torch.uint8)
    return TensorData(
        {
            "photos": Ragged(values=pixels, offsets=40 * 56 * torch.arange(5)),
            "original_sizes": torch.tensor([[40, 56]] * 4),
            "annotations": [known(row, 40, 56) for row in range(4)],
        }
    )


def small_sam() -> SamNetwork:
    torch.manual_seed(0)
    module = named("sam-32x1", shape=SHAPE).new().eval().requires_grad_(False)
    assert isinstance(module, SamNetwork)
    return module


def pixels_of(axis: Any) -> np.ndarray[Any, Any]:
    return np.asarray(axis.images[0].get_array())


def test_a_line_a_model_below_the_truth_in_the_same_colours() -> None:
    figure = Masks(lines={"boxes": "filled", "SAM": "sam"}, columns=3)(
        {"filled": Filled(), "sam": small_sam()}, objects(), work=Work()
    )
    axes = np.array(figure.axes).reshape(3, 3)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["truth", "boxes", "SAM"]
    assert [axis.get_title() for axis in axes[1]] == ["IoU 1.00"] * 3
    true, said = pixels_of(axes[0, 0]), pixels_of(axes[1, 0])
    assert true.shape == (SIDE, 240, 3)
    # the middles of the objects, and of the background
    for y, x in ((120, 80), (260, 180)):
        assert (true[y, x] == said[y, x]).all()
        assert len(set(true[y, x].tolist())) > 1
    assert true[20, 200].tolist() == said[20, 200].tolist() == [100, 100, 100]
    assert (true != said).any(-1).mean() < 0.02  # corners of logits are rounder
    # the SAM of random weights covers something else
    assert (true != pixels_of(axes[2, 0])).any(-1).mean() > 0.02


def test_only_photos_that_may_be_shown_with_their_credit() -> None:
    page = Masks(lines={"boxes": "filled"}, licences=PUBLISHABLE)
    figure = page({"filled": Filled()}, objects(), work=Work())
    assert len(figure.axes) == 2 * 3  # 4, 5 and none
    text = figure.get_supxlabel()
    assert sorted(line.partition(": ")[2] for line in text.splitlines()) == [
        "photographer 0, CC BY 2.0",
        "photographer 3, CC BY-SA 2.0",
    ]
    assert (
        Masks(lines={}, columns=2)({}, objects(), work=Work()).get_supxlabel().count("photographer")
        >= 1
    )
    nobody = TensorData({**objects().columns, "annotations": [known(1, 64, 48)] * 4})
    with pytest.raises(BadData, match=r"has a licence in \(4, 5\); allow another"):
        page({"filled": Filled()}, nobody, work=Work())
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, metadata={"Software": None})
    again = io.BytesIO()
    page({"filled": Filled()}, objects(), work=Work()).savefig(
        again, dpi=110, metadata={"Software": None}
    )
    assert buffer.getvalue() == again.getvalue()


def test_credit_lines() -> None:
    def line(licence: int | str | None, credit: str) -> str:
        image: Any = {"licence": licence, "credit": credit}
        return credit_of(image)

    assert line(4, "A") == "A, CC BY 2.0"
    assert line(1, "") == "licence 1"
    assert line("own", "A") == "A, own"
    assert line(None, "") == ""


def test_the_curve_is_the_miou_of_each_click() -> None:
    roles, data = {"a": small_sam()}, objects()
    figure = Clicks(lines={"SAM": "a"}, dashed=("a",), clicks=2)(roles, data, work=Work())
    line = figure.axes[0].lines[0]
    expected = 100 * click_ious(roles, data, role="a", clicks=2).mean(0)
    assert np.asarray(line.get_xdata()).tolist() == [1, 2]
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx(expected.tolist())
    assert (line.get_label(), line.get_linestyle()) == ("SAM", "--")
    with pytest.raises(BadSetting, match=r"clicks must be >= 1 \(got 0\)"):
        Clicks(lines={}, clicks=0)
    with pytest.raises(BadRecipe, match="role 'a' is a Filled"):
        Clicks(lines={"x": "a"})({"a": Filled()}, data, work=Work())


def test_everything_by_the_grid_and_in_two_rounds() -> None:
    page = EverythingMasks(lines={"SAM": "a"}, settings=EASY, licences=PUBLISHABLE, columns=2)
    figure = page({"a": small_sam()}, photos(), work=Work())
    axes = np.array(figure.axes).reshape(3, 2)
    labels = ["truth", "SAM, grid", "SAM, hierarchical"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == labels
    assert axes[1, 0].get_title().endswith("masks, 16 points")
    assert axes[2, 0].get_title().endswith("masks, 1 points")  # all is sure after round 1
    points = axes[1, 0].lines[0]
    middle = [SIDE * (i + 0.5) / 4 for i in range(4)]
    # a frame of 64 x 46 of a photo of 56 x 40
    assert sorted(set(np.round(np.asarray(points.get_xdata()), 3))) == pytest.approx(middle)
    lone = axes[2, 0].lines[0]  # of the grid's four nearest to the middle, the lower right one
    assert np.asarray(lone.get_xdata()).tolist() == pytest.approx([SIDE * 5 / 8])
    assert np.asarray(lone.get_ydata()).tolist() == pytest.approx([229 * 5 / 8])
    # the first photo and the third: the second may not be shown
    assert figure.get_supxlabel() == "1: photographer 0, CC BY 2.0"
    with pytest.raises(BadData, match="everything: no photo has a licence"):
        page(
            {"a": small_sam()},
            TensorData({**photos().columns, "annotations": [known(1, 40, 56)] * 4}),
            work=Work(),
        )


def test_a_mask_is_half_its_colour_with_an_outline() -> None:
    photo = np.full((8, 8, 3), 100, dtype=np.uint8)
    mask = np.zeros((8, 8), dtype=bool)
    mask[2:6, 2:7] = True
    red = np.array([1.0, 0.0, 0.0])
    drawn = painted(photo, [mask], [red])
    assert drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[3, 3].tolist() == [178, 50, 50]  # (255 + 100) / 2, rounded to even
    assert drawn[2, 2].tolist() == drawn[5, 6].tolist() == [255, 128, 128]
    # a later mask lies on top; one without a pixel changes nothing
    green = np.array([0.0, 1.0, 0.0])
    over = painted(photo, [mask, mask & False, np.ones((8, 8), dtype=bool)], [red, red, green])
    assert over[3, 3].tolist() == [50, 178, 50]
    assert (colour_at(mask) == colour_at(mask.copy())).all()
    assert len({tuple(colour) for colour in colours(12)}) == 12
