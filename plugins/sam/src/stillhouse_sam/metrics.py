"""How near a SAM's masks are to the truth, prompted by boxes and by clicks: mIoU.

N: objects of all images. P: those of a batch. K: clicks. L: side of the masks. Everything is
measured on L x L cells, within the real part of the frame; an mIoU is a fraction, the mean over
objects. An image whose masks are all invalid adds none.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stillhouse.batching import each_batch
from stillhouse.data.data import Data
from stillhouse.errors import BadData, BadSetting
from stillhouse.metrics import Metric, Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work
from stillhouse_sam.filled import filled
from stillhouse_sam.full_stage import real_part
from stillhouse_sam.objectives import mask_iou
from stillhouse_sam.prompting import (
    device_of,
    embedded,
    on_device,
    predict_from_boxes,
    predict_from_points,
    sam_of,
    threshold_of,
)
from stillhouse_sam.prompts import farthest_click, unpack_masks

CLICKS = (1, 3, 5, 9)
BOX_MIOU = Score(name="box_miou", better="higher", unit="%", label="Box mIoU")
COLUMNS = ("images", "sizes", "masks", "mask_valid", "boxes")


def truth_of(
    batch: Tensors,
) -> tuple[Bool[Tensor, "B M L L"], Bool[Tensor, "B M"], Bool[Tensor, "B L L"]]:
    """True masks within the real part, which of them are objects, and the real part."""
    for name in COLUMNS:
        named(batch, name, what="column", where="batch")
    masks = unpack_masks(batch["masks"])
    real = real_part(batch, masks.shape[-1])
    masks = masks & real[:, None]
    # a mask that lies in the last, broken cell is none
    return masks, batch["mask_valid"] & masks.flatten(2).any(2), real


def box_ious(
    models: Models, data: Data, *, role: str = "student", batch: int = 8
) -> Float[Tensor, " N"]:
    """IoU of each object of each image, prompted by its box."""

    def ious(module: nn.Module, rows: Tensors) -> Tensor:
        masks, valid, real = truth_of(rows)
        images, columns = valid.nonzero(as_tuple=True)
        if len(images) == 0:
            return torch.zeros(0)
        logits, _ = predict_from_boxes(module, rows, images, rows["boxes"][images, columns])
        shown = (logits > threshold_of(module)) & real[images]
        return mask_iou(shown, masks[images, columns])

    return _each(models, data, role, batch, ious)


def click_ious(
    models: Models,
    data: Data,
    *,
    role: str = "student",
    clicks: int = max(CLICKS),
    batch: int = 8,
    at_once: int = 64,
) -> Float[Tensor, "N K"]:
    """IoU of each object of each image after 1 ... `clicks` clicks; see `ClickIou`."""
    sam = sam_of(models, role, where="clicks")

    def ious(module: nn.Module, rows: Tensors) -> Tensor:
        del module  # its Sam answers
        masks, valid, real = truth_of(rows)
        embedding, objects = embedded(sam, rows), valid.nonzero()
        found = [torch.zeros(0, clicks)]
        for some in objects.split(at_once):
            images, columns = some.unbind(1)
            truth, taken = masks[images, columns], torch.zeros_like(masks[images, columns])
            points, labels = some.new_zeros(len(some), 0, 2), some.new_zeros(len(some), 0)
            rounds: list[Tensor] = []
            for _ in range(clicks):
                point, label = farthest_click(truth, taken)
                points = torch.cat([points, point[:, None]], dim=1)
                labels = torch.cat([labels, label[:, None]], dim=1)
                logits, _ = predict_from_points(sam, embedding[images], points, labels)
                taken = (logits > sam.mask_threshold) & real[images]
                rounds.append(mask_iou(taken, truth))
            found.append(torch.stack(rounds, dim=1).cpu())
        return torch.cat(found)

    return _each(models, data, role, batch, ious)


def _each(
    models: Models,
    data: Data,
    role: str,
    batch: int,
    ious: Callable[[nn.Module, Tensors], Tensor],
) -> Tensor:
    """`ious` of each batch on the role's device, together, on the CPU."""
    module = named(models, role, what="role", where="IoU")

    def found(rows: Tensors) -> Tensor:
        return ious(module, on_device(rows, module)).cpu()

    return _some(list(each_batch(data, found, most=batch, device=device_of(module))))


def _some(parts: list[Tensor]) -> Tensor:
    found = torch.cat(parts) if parts else torch.zeros(0)
    if len(found) == 0:
        raise BadData("the evaluation data hold no object; label some masks")
    return found


@dataclass(frozen=True, kw_only=True)
class BoxIou(Metric):
    """box_miou: over all objects, each prompted by its true box.

    A whole SAM embeds an image once. Any other role that answers the first box of an image (a
    fake-quantized SAM, an ONNX file) is run once an object: the same score, M times the cost.
    """

    role: str = "student"
    batch: int = 8

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        found = box_ious(models, data, role=self.role, batch=self.batch)
        return {"box_miou": float(found.mean())}

    def scores(self) -> Sequence[Score]:
        return (BOX_MIOU,)


@dataclass(frozen=True, kw_only=True)
class FilledBoxIou(Metric):
    """box_miou of the true boxes themselves, filled: what an answer to a box is worth that never
    looks at the image. Runs no role.
    """

    batch: int = 8

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        found = [_filled_ious(rows) for rows in data.batches(self.batch, rng=None)]
        return {"box_miou": float(_some(found).mean())}

    def scores(self) -> Sequence[Score]:
        return (BOX_MIOU,)


def _filled_ious(rows: Tensors) -> Tensor:
    masks, valid, real = truth_of(rows)
    images, columns = valid.nonzero(as_tuple=True)
    cells = masks.shape[-1] / rows["images"].shape[-1]
    shown = filled(rows["boxes"][images, columns] * cells, masks.shape[-1]) & real[images]
    return mask_iou(shown, masks[images, columns])


@dataclass(frozen=True, kw_only=True)
class ClickIou(Metric):
    """click<k>_miou for each k of `clicks`: over all objects, after k clicks (TinySAM, arXiv
    2312.13789, evaluation by points); of a whole SAM.

    The first click is the truth's point farthest from its edge, each next one that of the larger
    error (`prompts.farthest_click`), 1 in what is missed, 0 in what is wrongly taken; all clicks so
    far are decoded together. Reconstruction: the mask of the click before is not given as a prompt.
    """

    role: str = "student"
    clicks: tuple[int, ...] = CLICKS
    batch: int = 8

    def __post_init__(self) -> None:
        if not self.clicks or min(self.clicks) < 1:
            raise BadSetting(f"clicks must be some numbers >= 1 (got {self.clicks})")

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        most = max(self.clicks)
        found = click_ious(models, data, role=self.role, clicks=most, batch=self.batch).mean(0)
        return {f"click{k}_miou": float(found[k - 1]) for k in self.clicks}

    def scores(self) -> Sequence[Score]:
        return [
            Score(name=f"click{k}_miou", better="higher", unit="%", label=f"{k}-click mIoU")
            for k in self.clicks
        ]
