"""A decoder's first lesson: where a box is, before it sees an image.

B: images. N: boxes of a step. C: channels. G: side of the embedding. L: side of the masks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import not_negative
from stillhouse.objectives.objective import Models, Phase, Tensors
from stillhouse_sam.objectives import FOCAL_SHARE, prediction_loss

SMALLEST = 1 / 32  # side of a drawn box, of the frame's


@dataclass(frozen=True, kw_only=True)
class FillBoxes:
    """SAM's own mask and IoU losses (`prediction_loss`) of boxes to be filled, for a teacher that
    is trained from nothing: until a decoder has found out where its prompts are, an image gives
    it no signal, and on few images that takes most of the training. No part of any paper.

    Roles: "prompts" and "decoder" learn. Of a batch only the images' number and side S count: each
    stands for `boxes` boxes, their sides drawn between S / 32 and S, uniformly in the logarithm,
    their place uniformly. The embedding is normal noise of standard deviation `noise`, which says
    nothing, so that what encoders say later does not upset the decoder. Raises BadSetting.
    """

    phases: Mapping[str, Phase]
    grid: int
    channels: int
    boxes: int = 2
    noise: float = 0.3
    focal: float = FOCAL_SHARE

    def __post_init__(self) -> None:
        for name in ("noise", "focal"):
            not_negative(name, getattr(self, name))
        for name in ("grid", "channels", "boxes"):
            if getattr(self, name) < 1:
                raise BadSetting(f"{name} must be >= 1 (got {getattr(self, name)})")

    def terms(
        self,
        phase: str,
        models: Models,
        batch: Tensors,
        *,
        step: int,
        steps: int,
        rng: Generator,
    ) -> Tensors:
        images = batch["images"]
        count, side = self.boxes * len(images), images.shape[-1]
        boxes = drawn_boxes(count, side, rng=rng).to(images.device)
        noise = torch.randn(count, self.channels, self.grid, self.grid, generator=rng)
        prompt = models["prompts"]({"boxes_prompt": boxes})
        embedding = (self.noise * noise).to(images.device)
        found = models["decoder"]({"embedding": embedding, **prompt})
        logits = found["logits"]
        truth = filled(boxes * (logits.shape[-1] / side), logits.shape[-1])
        mask, iou = prediction_loss(logits, found["iou"], truth, focal=self.focal)
        return {"mask": mask, "iou": iou}


def drawn_boxes(count: int, side: int, *, rng: Generator) -> Float[Tensor, "N 4"]:
    """Boxes (left, top, right, bottom) in a frame of `side` pixels, as `FillBoxes` draws them."""
    lengths = torch.exp(torch.rand(count, 2, generator=rng) * -math.log(SMALLEST)) * SMALLEST * side
    corners = torch.rand(count, 2, generator=rng) * (side - lengths)
    return torch.cat([corners, corners + lengths], dim=1)


def filled(boxes: Float[Tensor, "N 4"], side: int) -> Bool[Tensor, "N L L"]:
    """The cells whose middle is in a box (left, top, right, bottom, in cells)."""
    middle = torch.arange(side, device=boxes.device) + 0.5
    across = (middle > boxes[:, 0:1]) & (middle < boxes[:, 2:3])
    down = (middle > boxes[:, 1:2]) & (middle < boxes[:, 3:4])
    return down[:, :, None] & across[:, None, :]
