"""Everything in an image: SAM's grid of points, and TinySAM's hierarchical one (arXiv 2312.13789,
sec. 3.3), which skips the points that large sure masks already hold.

H, W: an image's height and width in pixels. K: masks. Points are (x, y) in pixels of a crop.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.errors import BadSetting, MissingExtra
from stillhouse.objectives.inputs import positive
from stillhouse_sam.counts import Counts, counted

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from segment_anything import SamAutomaticMaskGenerator
    from segment_anything.modeling import Sam
    from segment_anything.utils.amg import MaskData

Record = dict[str, Any]  # Any: segment_anything's record of a mask, see `generate`
COARSER = 4  # the first round has 1/4 of the points a side (TinySAM, sec. 3.3)


class HierarchicalMaskGenerator:
    """A drop-in for segment_anything's SamAutomaticMaskGenerator (same settings, same records) with
    two rounds of points (TinySAM, sec. 3.3).

    1. Of SAM's grid every fourth point of every fourth row, SAM's filters; the high-confidence area
    is the union of {logit > `high_confidence`} at the image's resolution over the masks kept.
    2. The grid's other points but those within that area, the same filters. Both together go
    through box NMS. With `high_confidence` inf both rounds decode SAM's whole grid; with -inf
    nothing is decoded in round 2 once round 1 has kept a mask.

    With crop layers each crop has its two rounds. With `point_grids` round 1 is the points nearest
    to an even grid of sqrt(points) // 4 a side, at least 1. After `generate`, `counts` says what it
    cost. Differs from the published code: round 1 is part of SAM's grid (there a coarser one, whose
    points lie between SAM's and are decoded besides), round 2 is exact (there it lacks the last row
    and column and is rounded to whole pixels), and an image without points left is no error.
    """

    def __init__(
        self,
        model: "Sam",
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: "list[NDArray[np.float64]] | None" = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        *,
        high_confidence: float = 8.5,
    ) -> None:
        from segment_anything import SamAutomaticMaskGenerator

        if (points_per_side is None) == (point_grids is None):
            raise BadSetting("give either points_per_side or point_grids")
        if output_mode not in ("binary_mask", "uncompressed_rle", "coco_rle"):
            raise BadSetting(
                "output_mode must be binary_mask, uncompressed_rle or coco_rle "
                f"(got '{output_mode}')"
            )
        try:
            self.whole: SamAutomaticMaskGenerator = SamAutomaticMaskGenerator(
                model,
                points_per_side,
                points_per_batch,
                pred_iou_thresh,
                stability_score_thresh,
                stability_score_offset,
                box_nms_thresh,
                crop_n_layers,
                crop_nms_thresh,
                crop_overlap_ratio,
                crop_n_points_downscale_factor,
                point_grids,
                min_mask_region_area,
                output_mode,
            )
        except ModuleNotFoundError as error:  # small regions are found by OpenCV
            what = "min_mask_region_area > 0"
            install = "uv pip install opencv-python-headless"
            raise MissingExtra(what, "cv2", install=install) from error
        self.high_confidence = high_confidence
        self.counts = Counts()

    @torch.no_grad()
    def generate(self, image: "NDArray[np.uint8]") -> list[Record]:
        """A record a mask of an image [H, W, 3]: segmentation (by `output_mode`), area (pixels),
        bbox and crop_box (x, y, width, height), predicted_iou, stability_score, point_coords.
        """
        g = self.whole
        with counted(g.predictor.model) as self.counts:
            found = self._masks(image)
        if g.min_mask_region_area > 0:
            overlap = max(g.box_nms_thresh, g.crop_nms_thresh)
            found = g.postprocess_small_regions(found, g.min_mask_region_area, overlap)
        return _records(found, g.output_mode)

    def _masks(self, image: "NDArray[np.uint8]") -> "MaskData":
        from segment_anything.utils.amg import MaskData, generate_crop_boxes
        from torchvision.ops import box_area

        g, found = self.whole, MaskData()
        crops = generate_crop_boxes(image.shape[:2], g.crop_n_layers, g.crop_overlap_ratio)
        for crop, layer in zip(*crops, strict=True):
            found.cat(self._crop(image, crop, layer))
        if len(crops[0]) > 1:  # masks of smaller crops go first
            _suppress(found, 1 / box_area(found["crop_boxes"].float()), g.crop_nms_thresh)
        found.to_numpy()
        return found

    def _crop(self, image: "NDArray[np.uint8]", crop: list[int], layer: int) -> "MaskData":
        from segment_anything.utils.amg import uncrop_boxes_xyxy, uncrop_points

        g, (x0, y0, x1, y1) = self.whole, crop
        g.predictor.set_image(image[y0:y1, x0:x1])
        points = g.point_grids[layer] * np.array([[x1 - x0, y1 - y0]])
        first = first_round(g.point_grids[layer])
        found, area = self._round(points[first], crop, image.shape[:2])
        left = outside(points[~first], area.numpy())
        found.cat(self._round(left, crop, image.shape[:2])[0])
        g.predictor.reset_image()
        _suppress(found, found["iou_preds"], g.box_nms_thresh)
        found["boxes"] = uncrop_boxes_xyxy(found["boxes"], crop)
        found["points"] = uncrop_points(found["points"], crop)
        found["crop_boxes"] = torch.tensor([crop]).expand(len(found["rles"]), 4)
        return found

    def _round(
        self, points: "NDArray[np.float64]", crop: list[int], size: tuple[int, ...]
    ) -> "tuple[MaskData, Tensor]":
        """Masks of these points, and their high-confidence area [crop height, crop width]."""
        from segment_anything.utils.amg import MaskData, batch_iterator

        found = MaskData()
        area = torch.zeros(crop[3] - crop[1], crop[2] - crop[0], dtype=torch.bool)
        for (some,) in batch_iterator(self.whole.points_per_batch, points):
            batch = kept(self.whole, some, crop, size)
            area |= (batch["masks"] > self.high_confidence).any(dim=0).cpu()
            _encode(batch, crop, size, self.whole.predictor.model.mask_threshold)
            found.cat(batch)
        return found, area


def kept(
    generator: "SamAutomaticMaskGenerator",
    points: "NDArray[np.float64]",
    crop: list[int],
    size: tuple[int, ...],
) -> "MaskData":
    """What SAM's filters keep of the masks of points: masks (logits [K, h, w] of the crop),
    iou_preds, stability_score, boxes and points. The generator's image is set to the crop.
    """
    from segment_anything.utils import amg

    g, threshold = generator, generator.predictor.model.mask_threshold
    height, width = crop[3] - crop[1], crop[2] - crop[0]
    in_frame = g.predictor.transform.apply_coords(points, (height, width))
    prompts = torch.as_tensor(in_frame, device=g.predictor.device)
    masks, ious, _ = g.predictor.predict_torch(
        prompts[:, None],
        torch.ones(len(prompts), 1, dtype=torch.int, device=prompts.device),
        multimask_output=True,
        return_logits=True,
    )
    found = amg.MaskData(
        masks=masks.flatten(0, 1),
        iou_preds=ious.flatten(),
        points=torch.as_tensor(points.repeat(masks.shape[1], axis=0)),
    )
    if g.pred_iou_thresh > 0:
        found.filter(found["iou_preds"] > g.pred_iou_thresh)
    found["stability_score"] = amg.calculate_stability_score(
        found["masks"], threshold, g.stability_score_offset
    )
    if g.stability_score_thresh > 0:
        found.filter(found["stability_score"] >= g.stability_score_thresh)
    found["boxes"] = amg.batched_mask_to_box(found["masks"] > threshold)
    edge = amg.is_box_near_crop_edge(found["boxes"], crop, [0, 0, size[1], size[0]])
    found.filter(~edge)
    return found


def outside(points: "NDArray[np.float64]", area: "NDArray[np.bool_]") -> "NDArray[np.float64]":
    """Those of points [., 2] that are in no True pixel of `area` [H, W]."""
    return points[~area[points[:, 1].astype(int), points[:, 0].astype(int)]]


def first_round(grid: "NDArray[np.float64]") -> "NDArray[np.bool_]":
    """[P]: which points of a grid [P, 2], in fractions of a crop, are decoded first: those nearest
    to an even grid of sqrt(P) // 4 a side, at least 1; of two as near, that to the right or below.
    """
    from segment_anything.utils.amg import build_point_grid

    wanted = build_point_grid(max(1, round(len(grid) ** 0.5) // COARSER)) + 1e-6
    chosen = np.zeros(len(grid), dtype=bool)
    chosen[np.square(wanted[:, None] - grid[None]).sum(-1).argmin(1)] = True
    return chosen


def _encode(found: "MaskData", crop: list[int], size: tuple[int, ...], threshold: float) -> None:
    """Logits of a crop become run lengths of masks of the image."""
    from segment_anything.utils.amg import mask_to_rle_pytorch, uncrop_masks

    whole = uncrop_masks(found["masks"] > threshold, crop, size[0], size[1])
    found["rles"] = mask_to_rle_pytorch(whole)
    del found["masks"]


def _suppress(found: "MaskData", scores: Tensor, overlap: float) -> None:
    from torchvision.ops import batched_nms

    boxes = found["boxes"].float()
    one_class = torch.zeros(len(boxes), device=boxes.device)
    found.filter(batched_nms(boxes, scores.to(boxes), one_class, iou_threshold=overlap))


def _records(found: "MaskData", output_mode: str) -> list[Record]:
    from segment_anything.utils import amg

    written = {
        "coco_rle": amg.coco_encode_rle,
        "binary_mask": amg.rle_to_mask,
        "uncompressed_rle": dict,
    }[output_mode]
    return [
        {
            "segmentation": written(rle),
            "area": amg.area_from_rle(rle),
            "bbox": amg.box_xyxy_to_xywh(found["boxes"][row]).tolist(),
            "predicted_iou": found["iou_preds"][row].item(),
            "point_coords": [found["points"][row].tolist()],
            "stability_score": found["stability_score"][row].item(),
            "crop_box": amg.box_xyxy_to_xywh(found["crop_boxes"][row]).tolist(),
        }
        for row, rle in enumerate(found["rles"])
    ]


@dataclass(frozen=True, kw_only=True)
class EverythingSettings:
    """Everything mode's settings, SAM's own where it has them; thresholds above what a small model
    says keep no mask.
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    min_mask_region_area: int = 0
    high_confidence: float = 8.5

    def __post_init__(self) -> None:
        positive("points_per_side", self.points_per_side)
        positive("points_per_batch", self.points_per_batch)

    def grid(self, sam: "Sam") -> "SamAutomaticMaskGenerator":
        """segment_anything's own generator; masks as COCO run lengths."""
        return self.hierarchical(sam).whole

    def hierarchical(self, sam: "Sam") -> HierarchicalMaskGenerator:
        """Two rounds; masks as COCO run lengths."""
        return HierarchicalMaskGenerator(
            sam,
            self.points_per_side,
            self.points_per_batch,
            self.pred_iou_thresh,
            self.stability_score_thresh,
            self.stability_score_offset,
            self.box_nms_thresh,
            min_mask_region_area=self.min_mask_region_area,
            output_mode="coco_rle",
            high_confidence=self.high_confidence,
        )

    def with_confidence(self, value: float) -> "EverythingSettings":
        return replace(self, high_confidence=value)

    def record(self) -> dict[str, Any]:
        """As JSON holds it: a high_confidence of inf is null. Raises BadSetting for -inf and NaN,
        which nobody keeps.
        """
        kept = asdict(self)
        if self.high_confidence == math.inf:
            return kept | {"high_confidence": None}
        if not math.isfinite(self.high_confidence):
            raise BadSetting(
                f"high_confidence must be a logit, or inf to skip nothing "
                f"(got {self.high_confidence})"
            )
        return kept

    @staticmethod
    def of(record: Mapping[str, Any]) -> "EverythingSettings":
        """Undoes `record`."""
        kept = dict(record)
        value = kept.pop("high_confidence")
        return EverythingSettings(**kept).with_confidence(math.inf if value is None else value)


def sure_logits(
    settings: EverythingSettings, sam: "Sam", image: "NDArray[np.uint8]"
) -> list[Tensor]:
    """The logits above 0 of each mask that round 1 keeps of an image [H, W, 3]."""
    from segment_anything.utils.amg import batch_iterator

    grid, (height, width) = settings.grid(sam), image.shape[:2]
    grid.predictor.set_image(image)
    found: list[Tensor] = []
    points = grid.point_grids[0][first_round(grid.point_grids[0])] * np.array([[width, height]])
    for (some,) in batch_iterator(grid.points_per_batch, points):
        masks = kept(grid, some, [0, 0, width, height], (height, width))["masks"].cpu()
        found += [logits[logits > 0] for logits in masks]
    return found


def best_ious(
    records: Sequence[Record],
    truth: Sequence[Any],  # Any: COCO's run lengths
) -> "NDArray[np.float64]":
    """[K]: the IoU of each true segment with the generated mask that overlaps it most; 0 where no
    mask was generated. Masks as COCO run lengths.
    """
    from pycocotools.mask import iou

    if not truth or not records:
        return np.zeros(len(truth))
    found = [record["segmentation"] for record in records]
    return np.asarray(iou(found, list(truth), [0] * len(truth))).max(axis=0)
