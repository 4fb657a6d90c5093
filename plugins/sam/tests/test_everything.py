import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.utils.amg import build_point_grid

from stillhouse.errors import BadData, BadSetting
from stillhouse_sam.confidence import TRIED, calibrate_high_confidence
from stillhouse_sam.counts import counted
from stillhouse_sam.everything import (
    EverythingSettings,
    HierarchicalMaskGenerator,
    best_ious,
    first_round,
    outside,
    sure_logits,
)
from stillhouse_sam.formats import encoded

EASY: dict[str, Any] = {"pred_iou_thresh": -9.0, "stability_score_thresh": 0.0}
IMAGE = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)


@pytest.fixture
def sam() -> Sam:
    """A SAM of 64 pixels with random weights."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=64, patch_size=8, embed_dim=32, depth=1, num_heads=2, out_chans=32, window_size=4
    )
    prompts = PromptEncoder(
        embed_dim=32, image_embedding_size=(8, 8), input_image_size=(64, 64), mask_in_chans=4
    )
    decoder = MaskDecoder(
        transformer_dim=32,
        transformer=TwoWayTransformer(depth=1, embedding_dim=32, num_heads=2, mlp_dim=32),
        iou_head_hidden_dim=32,
    )
    return Sam(encoder, prompts, decoder).eval()


def points_of(sam: Sam, generator: HierarchicalMaskGenerator) -> list[tuple[float, float]]:
    """Points decoded, in fractions of the image."""
    seen: list[torch.Tensor] = []

    def see(_: object, args: object, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["points"][0][:, 0])

    hook = sam.prompt_encoder.register_forward_pre_hook(see, with_kwargs=True)
    generator.generate(IMAGE)
    hook.remove()
    frame = torch.tensor([64.0, 46.0])  # 40 x 56 at a longer side of 64
    return [(round(x, 5), round(y, 5)) for x, y in (torch.cat(seen) / frame).tolist()]


def grid(side: int) -> list[tuple[float, float]]:
    return [(round(x, 5), round(y, 5)) for x, y in build_point_grid(side).tolist()]


def every_fourth(side: int) -> list[tuple[float, float]]:
    """Of SAM's grid, by hand: 2, 6, 10 ... in rows and columns."""
    first = [(k + 0.5) / side for k in range(2, side, 4)]
    return [(round(x, 5), round(y, 5)) for y in first for x in first]


@pytest.mark.parametrize("side", [8, 12, 32])
def test_the_first_round_is_every_fourth_point_of_every_fourth_row(side: int) -> None:
    points = build_point_grid(side)
    first = [(round(x, 5), round(y, 5)) for x, y in points[first_round(points)].tolist()]
    assert first == every_fourth(side)


def test_the_first_round_of_other_grids_is_at_least_a_point() -> None:
    for side, expected in ((1, [0]), (2, [3]), (3, [4]), (5, [12])):
        assert np.flatnonzero(first_round(build_point_grid(side))).tolist() == expected
    given = np.array([[0.1, 0.1], [0.4, 0.6], [0.9, 0.2]])
    assert first_round(given).tolist() == [False, True, False]


def test_inf_decodes_each_point_of_sams_grid_once(sam: Sam) -> None:
    generator = HierarchicalMaskGenerator(sam, 8, **EASY, high_confidence=math.inf)
    points = points_of(sam, generator)
    assert points[:4] == every_fourth(8)
    assert sorted(points) == sorted(grid(8))
    assert (generator.counts.prompts, generator.counts.calls) == (64, 2)
    assert generator.counts.decoder_seconds > 0
    assert generator.counts.encoder_seconds > 0


def test_minus_inf_decodes_the_first_round_alone(sam: Sam) -> None:
    generator = HierarchicalMaskGenerator(sam, 8, **EASY, high_confidence=-math.inf)
    assert points_of(sam, generator) == every_fourth(8)
    assert len(generator.generate(IMAGE)) > 0


def test_points_in_the_high_confidence_area_are_skipped() -> None:
    area = np.zeros((4, 4), dtype=bool)
    area[:, 2:] = True
    fine = build_point_grid(4) * 4  # x in .5, 1.5, 2.5, 3.5
    assert outside(fine, area).tolist() == [[x, y + 0.5] for y in range(4) for x in (0.5, 1.5)]


@pytest.mark.parametrize("mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
@pytest.mark.parametrize("layers", [0, 1])
def test_on_the_same_points_the_records_are_sams(sam: Sam, mode: str, layers: int) -> None:
    # one point: the first round is the grid, so both generators decode the same
    settings = {**EASY, "crop_n_layers": layers, "output_mode": mode}
    ours = HierarchicalMaskGenerator(sam, 1, **settings).generate(IMAGE)
    sams = SamAutomaticMaskGenerator(sam, 1, **settings).generate(IMAGE)
    assert len(ours) == len(sams) > 0
    for mine, theirs in zip(ours, sams, strict=True):
        assert list(mine) == list(theirs)
        assert [type(v) for v in mine.values()] == [type(v) for v in theirs.values()]
        np.testing.assert_equal(mine, theirs)


@pytest.mark.parametrize("layers", [0, 1])
def test_with_filters_and_nms_the_records_are_sams(sam: Sam, layers: int) -> None:
    """With inf both decode the same points, one at a time: the same numbers, in another order."""
    sam.mask_decoder.iou_prediction_head.layers[-1].bias.data += 1
    sam.mask_threshold = 0.07  # masks of some hundred pixels, not of nearly all
    one = {"points_per_batch": 1, "stability_score_offset": 0.003, "crop_n_layers": layers}
    all_kept = {"box_nms_thresh": 1.0, "crop_nms_thresh": 1.0}
    every = SamAutomaticMaskGenerator(sam, 6, **EASY, **one, **all_kept).generate(IMAGE)
    thresholds = {
        f"{short}_thresh": float(np.nanquantile([record[name] for record in every], 0.3))
        for short, name in (
            ("pred_iou", "predicted_iou"),
            ("stability_score", "stability_score"),
        )
    }
    settings = {**one, **thresholds, "box_nms_thresh": 0.9, "crop_nms_thresh": 0.9}
    filtered = SamAutomaticMaskGenerator(sam, 6, **one, **thresholds, **all_kept).generate(IMAGE)
    sams = SamAutomaticMaskGenerator(sam, 6, **settings).generate(IMAGE)
    assert 3 < len(sams) <= len(filtered) < 0.7 * len(every)
    ours = HierarchicalMaskGenerator(sam, 6, **settings, high_confidence=math.inf).generate(IMAGE)

    def order(record: dict[str, Any]) -> tuple[float, ...]:
        return (record["predicted_iou"], *record["point_coords"][0], *record["bbox"])

    for mine, theirs in zip(sorted(ours, key=order), sorted(sams, key=order), strict=True):
        np.testing.assert_equal(mine, theirs)


def test_no_mask_kept_gives_no_record_and_the_whole_grid(sam: Sam) -> None:
    generator = HierarchicalMaskGenerator(sam, 8, pred_iou_thresh=99.0, crop_n_layers=1)
    assert generator.generate(IMAGE) == []
    assert generator.counts.prompts == 5 * 64  # an image and its four crops


def test_small_regions_go_as_sam_lets_them_go(sam: Sam) -> None:
    pytest.importorskip("cv2")
    settings = {**EASY, "min_mask_region_area": 30}
    ours = HierarchicalMaskGenerator(sam, 1, **settings).generate(IMAGE)
    np.testing.assert_equal(ours, SamAutomaticMaskGenerator(sam, 1, **settings).generate(IMAGE))


def test_counts_of_metas_generator(sam: Sam) -> None:
    with counted(sam) as counts:
        SamAutomaticMaskGenerator(sam, 8, 16, **EASY).generate(IMAGE)
    assert (counts.prompts, counts.calls) == (64, 4)
    assert not sam.mask_decoder._forward_hooks  # pyright: ignore[reportPrivateUsage]


def photos() -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
    truth = np.zeros((2, *IMAGE.shape[:2]), dtype=bool)
    truth[0, :20], truth[1, 25:, 10:] = True, True
    return [(IMAGE, truth)]


def test_calibration_takes_the_lowest_logit_that_loses_little(sam: Sam) -> None:
    settings = EverythingSettings(points_per_side=8, **EASY)
    every = torch.cat(sure_logits(settings, sam, IMAGE)).double().numpy()
    free = calibrate_high_confidence(sam, photos(), settings=settings, lost=1.0)
    assert free.high_confidence == np.quantile(every, 0.0)
    strict = calibrate_high_confidence(sam, photos(), settings=settings, lost=0.0)
    assert strict.hierarchical_miou >= strict.grid_miou
    # each lower logit tried loses more than nothing
    tried = [value for value in np.quantile(every, TRIED) if value < strict.high_confidence]
    assert tried
    truth = [encoded(mask) for mask in photos()[0][1]]
    for value in tried:
        lower = settings.with_confidence(float(value)).hierarchical(sam).generate(IMAGE)
        assert best_ious(lower, truth).mean() < strict.grid_miou
    # what it says is what the generator does
    rounds = settings.with_confidence(free.high_confidence).hierarchical(sam)
    assert best_ious(rounds.generate(IMAGE), truth).mean() == free.hierarchical_miou
    assert free.skipped == 1 - rounds.counts.prompts / 64


def no_logit_above_zero(sam: Sam) -> None:
    for mlp in sam.mask_decoder.output_hypernetworks_mlps:
        for value in mlp.parameters():
            torch.nn.init.zeros_(value)


def test_where_nothing_is_sure_the_whole_grid_is_measured(sam: Sam) -> None:
    no_logit_above_zero(sam)
    settings = EverythingSettings(points_per_side=4, **EASY)
    assert sum(map(len, sure_logits(settings, sam, IMAGE))) == 0
    found = calibrate_high_confidence(sam, photos(), settings=settings)
    assert (found.high_confidence, found.skipped, found.grid_miou) == (math.inf, 0.0, 0.0)
    sam.mask_threshold = -1.0  # all is mask
    found = calibrate_high_confidence(sam, photos(), settings=settings)
    assert (found.high_confidence, found.skipped) == (math.inf, 0.0)
    # whole images over a half and over 15 rows of 40, 46 columns of 56
    share = (1 / 2 + 15 * 46 / (40 * 56)) / 2
    assert found.grid_miou == found.hierarchical_miou == pytest.approx(share)


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_what_cannot_be_kept_as_json_is_named(value: float) -> None:
    settings = EverythingSettings().with_confidence(value)
    with pytest.raises(BadSetting, match=r"high_confidence must be a logit, or inf .* \(got"):
        settings.record()


@pytest.mark.parametrize("value", [8.5, -2.0, math.inf])
def test_settings_are_what_they_were_after_json(value: float) -> None:
    settings = EverythingSettings(points_per_side=5).with_confidence(value)
    text = json.dumps(settings.record(), allow_nan=False)
    assert EverythingSettings.of(json.loads(text)) == settings


def test_messages(sam: Sam) -> None:
    with pytest.raises(BadSetting, match="either points_per_side or point_grids"):
        HierarchicalMaskGenerator(sam, None)
    with pytest.raises(BadSetting, match=r"output_mode must be .* \(got 'png'\)"):
        HierarchicalMaskGenerator(sam, output_mode="png")
    nothing = np.zeros((0, *IMAGE.shape[:2]), dtype=bool)
    with pytest.raises(BadData, match="a photo without a true segment"):
        calibrate_high_confidence(sam, [(IMAGE, nothing)], settings=EverythingSettings())
    deaf = EverythingSettings(points_per_side=4, pred_iou_thresh=99.0)
    whole = [(IMAGE, np.ones((1, 40, 56), dtype=bool))]
    found = calibrate_high_confidence(sam, whole, settings=deaf)
    assert (found.high_confidence, found.skipped, found.grid_miou) == (math.inf, 0.0, 0.0)
