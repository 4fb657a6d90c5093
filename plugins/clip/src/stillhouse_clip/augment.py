"""Augmentation as a pure function of (seed, sample id, view): a random crop, scaled, mirrored."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.objective import Tensors
from stillhouse.training import mix

BITS = 1 << 20  # of a random number in [0, 1)


@dataclass(frozen=True, kw_only=True)
class ResizedCrop:
    """A crop of `area` of the image's own, of a ratio of sides within `ratio`, scaled bilinearly to
    the whole, and mirrored half of the time if `flip`. Images are uint8 and stay so.

    Each sample has a crop of its own; the published code of VLM-OOD takes one a batch.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise BadSetting(f"area must be two fractions in (0, 1] (got {self.area})")

    def __call__(self, batch: Tensors) -> Tensors:
        images = batch["images"]
        u = _uniform(batch, self.seed, 5)
        area = self.area[0] + (self.area[1] - self.area[0]) * u[0]
        low, high = (math.log(ratio) for ratio in self.ratio)
        ratio = torch.exp(low + (high - low) * u[1])
        # half width and half height of the crop, where the image reaches from -1 to 1
        wide, tall = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
        mirror = torch.where((u[4] < 0.5) & torch.tensor(self.flip), -1.0, 1.0)
        zero = torch.zeros_like(wide)
        x, y = (2 * u[2] - 1) * (1 - wide), (2 * u[3] - 1) * (1 - tall)
        theta = torch.stack([wide * mirror, zero, x, zero, tall, y], 1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        cut = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
        return {**batch, "images": cut.round().clamp(0, 255).to(images.dtype)}


def _uniform(batch: Tensors, seed: int, count: int) -> Tensor:
    """`count` numbers in [0, 1) a sample, [count, B], by its id and view."""
    pairs = zip(batch["id"].tolist(), batch["view"].tolist(), strict=True)
    rows = [[mix(seed, i, view, k) % BITS / BITS for k in range(count)] for i, view in pairs]
    return torch.tensor(rows).reshape(-1, count).T
