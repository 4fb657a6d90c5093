"""Augmentation as a pure function of (seed, sample id, view): the same in any batch, in any order,
on any day.

That is what lets teacher outputs be computed once. Every random number is a hash, or is drawn from
a generator that is seeded with one; what is more than a crop and a mirror is changed by
torchvision's v2 transforms.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse.objectives.objective import Tensors
from stillhouse.training import mix

if TYPE_CHECKING:
    from torchvision.transforms import v2

Transform = Literal["trivial", "auto-cifar10", "color-jitter", "resized-crop"]


@dataclass(frozen=True, kw_only=True)
class CropFlip:
    """A crop of the image's own size out of it padded by `padding` zeros, mirrored half of the
    time if `flip`.
    """

    padding: int = 4
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise BadSetting(f"padding must be >= 0 (got {self.padding})")

    def __call__(self, batch: Tensors) -> Tensors:
        images = batch["images"]
        height, width = images.shape[-2:]
        # by torch alone: importing torchvision's transforms takes every worker seconds
        padded = torch.nn.functional.pad(images, [self.padding] * 4)
        places = self.padding * 2 + 1
        crops: list[Tensor] = []
        mirrored: list[bool] = []
        for image, number in zip(padded, hashes(batch, self.seed), strict=True):
            number, top = divmod(number, places)
            number, left = divmod(number, places)
            crops.append(image[..., top : top + height, left : left + width])
            mirrored.append(self.flip and number % 2 == 1)
        changed = torch.stack(crops)
        chosen = torch.tensor(mirrored)
        changed[chosen] = changed[chosen].flip(-1)
        return {**batch, "images": changed}


@dataclass(frozen=True, kw_only=True)
class Randomised:
    """A random transform of torchvision by name, drawn anew for each sample and view, after a
    `CropFlip`.
    """

    transform: Transform
    first: CropFlip = field(default_factory=CropFlip)
    seed: int = 0

    def __call__(self, batch: Tensors) -> Tensors:
        batch = self.first(batch)
        transform = _transform(self.transform, batch["images"].shape[-1])
        changed: list[Tensor] = []
        with torch.random.fork_rng(devices=[]):
            for image, number in zip(batch["images"], hashes(batch, self.seed), strict=True):
                torch.default_generator.manual_seed(number)
                changed.append(transform(image))
        return {**batch, "images": torch.stack(changed)}


def _transform(name: Transform, size: int) -> "v2.Transform":
    from torchvision.transforms import v2

    match name:
        case "trivial":
            return v2.TrivialAugmentWide()
        case "auto-cifar10":
            return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
        case "color-jitter":
            return v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4)
        case "resized-crop":
            return v2.RandomResizedCrop(size)  # 8 to 100 % of the area, scaled to the whole


def hashes(batch: Tensors, seed: int) -> list[int]:
    """63 random bits a sample, from its id and view."""
    pairs = zip(batch["id"].tolist(), batch["view"].tolist(), strict=True)
    return [mix(seed, number, view) for number, view in pairs]
