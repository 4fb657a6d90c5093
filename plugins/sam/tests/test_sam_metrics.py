"""Scores by hand on roles that fill boxes, and on small SAMs against segment-anything's predictor."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from torch import Generator, Tensor, nn

from stillhouse.artifact import Built
from stillhouse.data.data import Ragged, TensorData
from stillhouse.data.notes import noted
from stillhouse.errors import BadData, BadRecipe, BadSetting, UnknownName
from stillhouse.objectives.objective import Tensors
from stillhouse.quantize.ptq import Quantize
from stillhouse.work import Work
from stillhouse_sam.annotated import segments
from stillhouse_sam.coco_metrics import CocoAp
from stillhouse_sam.everything import EverythingSettings, best_ious
from stillhouse_sam.everything_metrics import Everything, EverythingBoth
from stillhouse_sam.formats import decoded, of_mask
from stillhouse_sam.metrics import (
    COLUMNS,
    BoxIou,
    ClickIou,
    FilledBoxIou,
    box_ious,
    click_ious,
)
from stillhouse_sam.models import SamNetwork, Shape, named
from stillhouse_sam.prompts import (
    box_prompts,
    boxes_of,
    farthest_click,
    pack_masks,
    unpack_masks,
)
from stillhouse_sam.trying import check_boxes

SHAPE = Shape(size=64, grid=8, channels=32, heads=2, mlp=64)
SIZES = torch.tensor([[64, 48], [24, 64]])
RECTANGLES = (
    ((4, 12, 6, 16), (20, 29, 3, 10)),
    ((2, 10, 20, 30), None),
)  # top, bottom, left, right


class Filled(nn.Module):
    """Answers each box by itself, filled, `by` cells to the right; its two other masks are all
    or nothing, of a lower predicted IoU. All of the padding is in each.
    """

    def __init__(self, by: int = 0) -> None:
        super().__init__()
        self.by = by

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        corners = batch["point_coords"].flatten(2) / 2
        left, top, right, bottom = corners[..., None, None].unbind(2)
        y, x = torch.arange(32)[:, None] + 0.5, torch.arange(32)[None] + 0.5 - self.by
        inside = (x > left) & (x < right) & (y > top) & (y < bottom)
        height, width = (batch["sizes"] / 2)[:, None, :, None, None].unbind(2)
        inside |= (y > height) | (x + self.by > width)
        mask = 20.0 * inside - 10
        logits = torch.stack([torch.full_like(mask, 9.0), mask, torch.full_like(mask, -9.0)], 2)
        iou = torch.tensor([0.1, 0.9, -0.2]).expand(*mask.shape[:2], 3)
        return {"logits": logits, "iou": iou}


def objects() -> TensorData:
    """Two images with two objects and one, rectangles of 32 x 32 cells."""
    masks = torch.zeros(2, 2, 32, 32, dtype=torch.bool)
    for image, corners in enumerate(RECTANGLES):
        for place, corner in enumerate(corners):
            if corner is not None:
                top, bottom, left, right = corner
                masks[image, place, top:bottom, left:right] = True
    return TensorData(
        {
            "images": torch.randint(
                0, 256, (2, 3, 64, 64), generator=Generator().manual_seed(1), dtype=torch.uint8
            ),
            "sizes": SIZES,
            "masks": pack_masks(masks),
            "mask_valid": masks.flatten(2).any(2),
            "boxes": 2 * boxes_of(masks),
        }
    )


def small_sam(name: str = "sam-32x1") -> SamNetwork:
    torch.manual_seed(0)
    module = named(name, shape=SHAPE).new().eval().requires_grad_(False)
    assert isinstance(module, SamNetwork)
    return module


@pytest.mark.parametrize("by", [0, 2])
def test_masks_moved_aside_have_the_iou_worked_by_hand(by: int) -> None:
    roles = {"student": Filled(by)}
    # of 10 and 7 cells' width, and 10: moved by 2 they share 8 of 12, 5 of 9, 8 of 12
    first, second, third = (1.0, 1.0, 1.0) if by == 0 else (8 / 12, 5 / 9, 8 / 12)
    found = BoxIou()(roles, objects(), work=Work())
    assert found == {"box_miou": pytest.approx((first + second + third) / 3)}
    assert BoxIou(batch=1)(roles, objects(), work=Work()) == found


class Halved(nn.Module):
    """Answers each box by what of it is above its falling diagonal."""

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        found = Filled()(batch)
        left, top, right, bottom = (batch["point_coords"].flatten(2) / 2)[..., None, None].unbind(2)
        y, x = torch.arange(32)[:, None] + 0.5, torch.arange(32)[None] + 0.5
        above = (x - left) * (bottom - top) > (y - top) * (right - left)
        logits = torch.where(above[:, :, None], found["logits"], -9.0)
        return {**found, "logits": logits}


def test_a_sam_no_better_than_filled_boxes_is_refused() -> None:
    data = objects()
    columns = {name: data.rows(torch.arange(2))[name] for name in COLUMNS}
    above = torch.stack([torch.ones(32, 32).triu(diagonal=0).bool()] * 2)
    half = TensorData(
        {
            **columns,
            "masks": pack_masks(torch.stack([above, above & False], 1)),
            "boxes": torch.tensor([[[0.0, 0, 64, 64], [0.0, 0, 0, 0]]] * 2),
            "sizes": torch.tensor([[64, 64]] * 2),
            "mask_valid": torch.tensor([[True, False]] * 2),
        }
    )
    check_boxes(Halved(), half, go_on="")
    for worse in (Filled(), small_sam()):
        with pytest.raises(BadData, match=r"on 2 training photos.*filled, 51.6 %.*or set go_on"):
            check_boxes(worse, half, go_on="set go_on")
    unlabelled = TensorData({**half.columns, "mask_valid": torch.zeros(2, 2, dtype=torch.bool)})
    lines: list[str] = []
    with noted(lines.append):
        check_boxes(Filled(), unlabelled, go_on="")
    assert lines == ["teacher: no labelled training photo to try it on"]


def test_an_image_without_an_object_adds_nothing() -> None:
    data = objects()
    valid = torch.tensor([[False, False], [True, False]])
    some = TensorData({**data.columns, "mask_valid": valid})
    assert BoxIou()({"student": Filled(2)}, some, work=Work())["box_miou"] == pytest.approx(8 / 12)
    none = TensorData({**data.columns, "mask_valid": valid & False})
    with pytest.raises(BadData, match="hold no object; label some masks"):
        BoxIou(batch=1)({"student": Filled()}, none, work=Work())


def test_a_filled_box_is_worth_the_part_of_it_that_is_object() -> None:
    data = objects()
    assert FilledBoxIou()({}, data, work=Work()) == {"box_miou": pytest.approx(1.0)}
    masks = unpack_masks(data.columns["masks"])
    masks[0, 0, 4:12, 6:11] = False  # half of the first object; its box stays
    halved = TensorData({**data.columns, "masks": pack_masks(masks)})
    assert FilledBoxIou(batch=1)({}, halved, work=Work())["box_miou"] == pytest.approx(
        (0.5 + 1 + 1) / 3
    )


def predictors(sam: SamNetwork) -> list[SamPredictor]:
    """segment-anything's own, its image set, one an image."""
    images, found = objects().rows(torch.arange(2))["images"], list[SamPredictor]()
    for image, (height, width) in zip(images, SIZES.tolist(), strict=True):
        predictor = SamPredictor(sam.sam)
        predictor.set_torch_image(image[None, :, :height, :width].float(), (height, width))
        found.append(predictor)
    return found


def iou_of(answer: tuple[Tensor, Tensor, Tensor], truth: Tensor, size: Sequence[int]) -> float:
    _, ious, logits = answer
    shown = taken_of(ious, logits, size)
    return float((shown & truth).sum() / (shown | truth).sum())


def taken_of(ious: Tensor, logits: Tensor, size: Sequence[int]) -> Tensor:
    shown = logits[0, int(ious[0].argmax())] > 0
    shown[size[0] // 2 :], shown[:, size[1] // 2 :] = False, False
    return shown


def truths() -> list[tuple[int, Tensor, Tensor]]:
    """Image, mask and box of each object."""
    batch = objects().rows(torch.arange(2))
    found: list[tuple[int, Tensor, Tensor]] = []
    for image, corners in enumerate(RECTANGLES):
        for place, corner in enumerate(corners):
            if corner is not None:
                top, bottom, left, right = corner
                mask = torch.zeros(32, 32, dtype=torch.bool)
                mask[top:bottom, left:right] = True
                found.append((image, mask, batch["boxes"][image, place]))
    return found


def test_boxes_are_answered_as_segment_anything_does() -> None:
    sam = small_sam()
    ready = predictors(sam)
    expected = [
        iou_of(
            ready[image].predict_torch(None, None, box[None], return_logits=True),
            truth,
            SIZES[image].tolist(),
        )
        for image, truth, box in truths()
    ]
    assert min(expected) > 0
    found = box_ious({"student": sam}, objects())
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    stock = box_ious({"student": sam.sam}, objects(), batch=1)
    assert stock.tolist() == pytest.approx(found.tolist(), abs=1e-3)


def test_clicks_are_answered_as_segment_anything_does() -> None:
    sam = small_sam()
    ready, expected = predictors(sam), list[list[float]]()
    for image, truth, _ in truths():
        taken, points, labels = torch.zeros_like(truth), list[list[float]](), list[int]()
        expected.append([])
        for _ in range(3):
            point, label = farthest_click(truth[None], taken[None])
            # the middle of a cell of 2 pixels, less the half pixel that SAM adds
            points.append([2 * x + 0.5 for x in point[0].tolist()])
            labels.append(int(label))
            answer = ready[image].predict_torch(
                torch.tensor([points]), torch.tensor([labels]), return_logits=True
            )
            taken = taken_of(answer[1], answer[2], SIZES[image].tolist())
            expected[-1].append(iou_of(answer, truth, SIZES[image].tolist()))
    found = click_ious({"student": sam}, objects(), clicks=3, at_once=2)
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-3, rtol=0)
    scores = ClickIou(clicks=(3, 1))({"student": sam}, objects(), work=Work())
    assert list(scores) == ["click3_miou", "click1_miou"]
    assert scores["click1_miou"] == pytest.approx(float(found[:, 0].mean()))
    assert scores["click3_miou"] == pytest.approx(float(found[:, 2].mean()))


def test_a_fake_quantized_sam_is_scored_by_boxes() -> None:
    sam, data = small_sam(), objects()
    rows = data.rows(torch.arange(2))
    points, labels = box_prompts(rows["boxes"])
    batch = {"images": rows["images"], "sizes": rows["sizes"]}
    batch |= {"point_coords": points, "point_labels": labels}
    built = Built(spec=named("sam-32x1", shape=SHAPE), module=sam)
    rounded = Quantize(metric="minmax", bits=8, inputs=tuple(batch)).applied(built, batch).module
    roles = {"float": sam, "student": rounded}
    exact = box_ious(roles, data, role="float")
    gap = (box_ious(roles, data) - exact).abs()
    assert 0 < float(gap.max()) < 0.2
    with pytest.raises(BadRecipe, match="'student' is a QuantizedNetwork, which answers boxes"):
        ClickIou()(roles, data, work=Work())


def annotated(*, crowd: bool = False) -> TensorData:
    """`objects` with annotations of images twice the frame's size: a cell is 4 of their pixels."""
    texts: list[str] = []
    for (height, width), corners in zip((2 * SIZES).tolist(), RECTANGLES, strict=True):
        things: list[Any] = []
        for corner in corners:
            if corner is not None:
                top, bottom, left, right = (4 * edge for edge in corner)
                mask = np.zeros((height, width), dtype=bool)
                mask[top:bottom, left:right] = True
                things.append(of_mask(mask, category="thing"))
        if crowd:
            everything = np.ones((height, width), dtype=bool)
            things.append(of_mask(everything, crowd=True, category="thing"))
        known = {"name": "a", "height": height, "width": width, "licence": None, "credit": ""}
        texts.append(json.dumps({**known, "objects": things}))
    return TensorData({**objects().columns, "annotations": texts})


@pytest.mark.parametrize("crowd", [False, True])
def test_coco_ap_of_masks_moved_aside(crowd: bool, capsys: pytest.CaptureFixture[str]) -> None:
    data = annotated(crowd=crowd)
    # areas: 8 x 10, 9 x 7 and 8 x 10 cells of 16 pixels: 1280, 1008 and 1280; 32^2 is 1024
    exact = CocoAp()({"student": Filled()}, data, work=Work())
    assert exact == pytest.approx({"ap": 1.0, "ap_small": 1.0, "ap_medium": 1.0})
    # 2/3 is enough at 0.50, 0.55, 0.60 and 0.65, 5/9 at 0.50 and 0.55
    aside = CocoAp(prompts=1)({"student": Filled(2)}, data, work=Work())
    assert aside["ap_medium"] == pytest.approx(4 / 10)
    assert aside["ap_small"] == pytest.approx(2 / 10)
    assert capsys.readouterr().out == ""


def test_coco_ap_of_a_sam_is_that_of_its_own_masks() -> None:
    found = CocoAp()({"student": small_sam()}, annotated(), work=Work())
    assert 0 <= found["ap"] < 1  # random weights
    with pytest.raises(BadData, match="no text column 'annotations'"):
        CocoAp()({"student": small_sam()}, objects(), work=Work())


PHOTO = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
EASY = EverythingSettings(
    points_per_side=4,
    points_per_batch=8,
    pred_iou_thresh=-9.0,
    stability_score_thresh=0.0,
    high_confidence=float("inf"),
)


def photos(*truth: np.ndarray[Any, Any], count: int = 1) -> TensorData:
    known = {"name": "a", "height": 40, "width": 56, "licence": None, "credit": ""}
    text = json.dumps({**known, "objects": [of_mask(mask) for mask in truth]})
    pixels = torch.from_numpy(PHOTO).reshape(-1, 3)
    return TensorData(
        {
            "photos": Ragged(
                values=pixels.repeat(count, 1), offsets=40 * 56 * torch.arange(count + 1)
            ),
            "original_sizes": torch.tensor([[40, 56]] * count),
            "annotations": [text] * count,
        }
    )


def test_the_best_iou_of_each_segment_by_hand() -> None:
    def rectangle(left: int, right: int) -> np.ndarray[Any, Any]:
        mask = np.zeros((4, 8), dtype=bool)
        mask[1:3, left:right] = True
        return mask

    truth = [of_mask(rectangle(0, 4)), of_mask(rectangle(4, 8)), of_mask(rectangle(0, 8))]
    truth[2]["crowd"] = 1
    image: Any = {"objects": truth}
    rles = [thing["rle"] for thing in segments(image)]
    records = [{"segmentation": of_mask(rectangle(*ends))["rle"]} for ends in ((0, 3), (2, 6))]
    # 3 of 4, and 2 of 6; the crowd is no segment
    assert best_ious(records, rles).tolist() == pytest.approx([3 / 4, 2 / 6])
    assert best_ious([], rles).tolist() == [0, 0]


def test_everything_finds_a_sams_own_masks_and_counts_what_it_decodes() -> None:
    sam = small_sam()
    records = EASY.grid(sam.sam).generate(PHOTO)
    own = [decoded(record["segmentation"]) for record in records[:2]]
    found = Everything(settings=EASY, hierarchical=False)(
        {"student": sam}, photos(*own), work=Work()
    )
    assert found == {
        "everything_miou": 1.0, "masks": len(records), "decoder_calls": 2, "decoder_prompts": 16,
    }  # fmt: skip
    other = np.zeros((40, 56), dtype=bool)
    other[10:20, 10:30] = True
    masks = [decoded(record["segmentation"]) for record in records]
    nearest = max((mask & other).sum() / (mask | other).sum() for mask in masks)
    data = photos(own[0], other, count=2)
    found = Everything(settings=EASY, hierarchical=False)({"student": sam}, data, work=Work())
    assert found["everything_miou"] == pytest.approx((1 + nearest) / 2)
    assert found["decoder_prompts"] == 16  # a photo
    # one point, then the other 15 of SAM's in batches of 8
    rounds = Everything(settings=EASY, hierarchical=True)({"student": sam}, data, work=Work())
    assert (rounds["decoder_calls"], rounds["decoder_prompts"]) == (3, 16)


def test_both_ways_are_timed_in_the_same_run() -> None:
    sam, none = small_sam(), EASY.with_confidence(float("-inf"))
    own = [decoded(record["segmentation"]) for record in EASY.grid(sam.sam).generate(PHOTO)[:2]]
    data = photos(*own, count=2)
    found = EverythingBoth(settings=none)({"student": sam}, data, work=Work())
    for mode, hierarchical in (("grid", False), ("hierarchical", True)):
        alone = Everything(settings=none, hierarchical=hierarchical)(
            {"student": sam}, data, work=Work()
        )
        assert {name: found[mode, name] for name in alone} == alone
        parts = found[mode, "encoder_seconds"] + found[mode, "decoder_seconds"]
        assert 0 < parts < found[mode, "seconds"]
    # a mask was kept in round 1, so no point is left for round 2
    assert found["hierarchical", "decoder_prompts"] == 1
    expected = found["grid", "everything_miou"] - found["hierarchical", "everything_miou"]
    assert found["miou_lost"] == pytest.approx(expected)
    for name in ("seconds", "decoder_seconds"):
        ratio = found["grid", name] / found["hierarchical", name]
        assert found[f"{name}_ratio"] == pytest.approx(ratio)


def test_no_mask_kept_is_an_miou_of_zero() -> None:
    deaf = EverythingSettings(points_per_side=4, pred_iou_thresh=99.0)
    segment = np.ones((40, 56), dtype=bool)
    found = EverythingBoth(settings=deaf)({"student": small_sam()}, photos(segment), work=Work())
    assert found["grid", "everything_miou"] == found["hierarchical", "everything_miou"] == 0
    assert found["grid", "masks"] == found["hierarchical", "masks"] == 0


def test_messages() -> None:
    sam = small_sam()
    with pytest.raises(BadSetting, match=r"clicks must be some numbers >= 1 \(got \(0, 1\)\)"):
        ClickIou(clicks=(0, 1))
    with pytest.raises(UnknownName, match="unknown role 'studnt'"):
        BoxIou(role="studnt")({"student": sam}, objects(), work=Work())
    with pytest.raises(UnknownName, match="unknown column 'sizes'"):
        BoxIou()({"student": sam}, TensorData({"images": torch.zeros(1, 3, 8, 8)}), work=Work())
    with pytest.raises(BadData, match="the photos hold no true segment"):
        Everything(settings=EASY, hierarchical=False)({"student": sam}, photos(), work=Work())
    with pytest.raises(BadRecipe, match="everything: role 'student' is a Filled"):
        Everything(settings=EASY, hierarchical=False)({"student": Filled()}, photos(), work=Work())
    wrong = photos(np.ones((40, 56), dtype=bool))
    turned = TensorData({**wrong.columns, "original_sizes": torch.tensor([[56, 40]])})
    with pytest.raises(BadData, match="a: 56 x 40 pixels, but annotated as 40 x 56"):
        Everything(settings=EASY, hierarchical=False)({"student": sam}, turned, work=Work())
