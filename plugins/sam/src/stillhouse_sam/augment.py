"""Augmentation that moves masks and boxes with the pixels, as a pure function of the view."""

from dataclasses import dataclass

import torch
from torch import Tensor

from stillhouse.objectives.objective import Tensors
from stillhouse_sam.prompts import pack_masks, unpack_masks


@dataclass(frozen=True, kw_only=True)
class Flip:
    """Odd views are mirrored, even ones left as they are; the padding stays where it is.

    Of an image the first sizes[:, 1] columns are real and change places: images [B, C, S, S], the
    packed masks [B, M, L, L / 8] and the boxes [B, M, 4] in pixels of the frame (four zeros: no
    box, stays). Masks and boxes are optional. A cell of a mask takes the value of the cell in which
    its mirrored centre lies: exact where the real width is a multiple of S / L, at most half a cell
    aside elsewhere.
    """

    def __call__(self, batch: Tensors) -> Tensors:
        odd = batch["view"] % 2 == 1
        if not bool(odd.any()):
            return batch
        changed = {name: batch[name].clone() for name in _COLUMNS if name in batch}
        side, widths = batch["images"].shape[-1], batch["sizes"][odd, 1]
        changed["images"][odd] = mirrored(batch["images"][odd], widths.double())
        if "masks" in changed:
            masks = unpack_masks(batch["masks"][odd])
            scale = masks.shape[-1] / side
            changed["masks"][odd] = pack_masks(mirrored(masks, widths * scale, beyond=False))
        if "boxes" in changed:
            changed["boxes"][odd] = mirrored_boxes(batch["boxes"][odd], widths)
        return {**batch, **changed}


_COLUMNS = ("images", "masks", "boxes")


def mirrored(images: Tensor, widths: Tensor, *, beyond: bool = True) -> Tensor:
    """Images [B, K, H, W], of which `widths` [B] columns (may be broken numbers) are real, left
    and right exchanged; beyond them the images' own pixels, or zeros without `beyond`.
    """
    place = torch.arange(images.shape[-1], device=images.device)
    source = (widths.double()[:, None] - (place + 0.5)).floor().long()
    real = (source >= 0)[:, None, None, :]
    index = torch.where(source >= 0, source, place).clamp_max(images.shape[-1] - 1)
    turned = images.gather(-1, index[:, None, None, :].expand_as(images))
    return turned if beyond else turned & real


def mirrored_boxes(boxes: Tensor, widths: Tensor) -> Tensor:
    """Boxes [B, M, 4] (left, top, right, bottom) in images of real width `widths` [B]."""
    left, top, right, bottom = boxes.unbind(-1)
    width = widths.to(boxes.dtype)[:, None]
    turned = torch.stack([width - right, top, width - left, bottom], -1)
    return torch.where(boxes.ne(0).any(-1, keepdim=True), turned, boxes)
