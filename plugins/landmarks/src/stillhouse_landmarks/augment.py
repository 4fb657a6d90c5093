"""Augmentation that moves points with pixels, as a pure function of (seed, sample id, view).

The same in any batch, in any order, on any day: that is what lets teacher outputs be computed once.
Images and points are changed together by torchvision's v2 transforms.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from stillhouse.data.data import Data
from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import fraction, not_negative
from stillhouse.objectives.objective import Tensors
from stillhouse.training import Augment, mix
from stillhouse_landmarks.layouts import layout_of

BATCH = 256  # faces that are augmented at a time


@dataclass(frozen=True, kw_only=True)
class FaceAugment:
    """Mirror, rotation, scale, translation and occlusion of images uint8 [B, C, H, W] together with
    every column of `columns` ([B, 2P], fractions of the crop).

    Mirrored with probability `flip`, points trading places by `swap` (empty: by the layout with P
    points). Turned by up to `rotation` degrees either way, sized by up to 1 +- `scale` and shifted
    by up to `translation` of the side, each evenly drawn, around the centre; what comes in from
    outside is black. With probability `occlusion`, a rectangle of one colour, its sides up to
    `occluder` of the image's, hides a part; the points behind it stay where they are. Points may
    leave the crop.
    """

    flip: float = 0.5
    rotation: float = 30.0
    scale: float = 0.15
    translation: float = 0.05
    occlusion: float = 0.3
    occluder: float = 0.4
    swap: tuple[int, ...] = ()
    columns: tuple[str, ...] = ("landmarks",)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("flip", "occlusion", "occluder"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise BadSetting(f"{name} must be >= 0 and <= 1 (got {value})")
        not_negative("rotation", self.rotation)
        fraction("scale", self.scale)
        fraction("translation", self.translation)
        if not undone(self.swap):
            raise BadSetting("swap: a second mirror must undo the first; give each point's partner")

    def __call__(self, batch: Tensors) -> Tensors:
        swap = self._partners(batch[self.columns[0]].shape[1] // 2)
        images: list[Tensor] = []
        columns: dict[str, list[Tensor]] = {name: [] for name in self.columns}
        pairs = zip(batch["id"].tolist(), batch["view"].tolist(), strict=True)
        for row, (number, view) in enumerate(pairs):
            chance = Chance(Generator().manual_seed(mix(self.seed, number, view)))
            points = torch.stack([batch[name][row] for name in self.columns])
            image, moved = self._one(batch["images"][row], points, swap, chance)
            images.append(image)
            for name, changed in zip(self.columns, moved, strict=True):
                columns[name].append(changed)
        changed = {name: torch.stack(rows) for name, rows in columns.items()}
        return {**batch, "images": torch.stack(images), **changed}

    def _partners(self, points: int) -> Tensor:
        if self.flip == 0:
            return torch.arange(points)
        swap = self.swap or layout_of(points, instead="give swap, or flip=0").swap()
        if len(swap) != points:
            raise BadSetting(f"swap names {len(swap)} points, the faces have {points}")
        return torch.tensor(swap)

    def _one(
        self, image: Tensor, rows: Tensor, swap: Tensor, chance: "Chance"
    ) -> tuple[Tensor, Tensor]:
        """One face: image [C, H, W] and rows [columns, 2P] to both after all changes."""
        height, width = image.shape[-2:]
        side = rows.new_tensor([width, height])
        points = rows.unflatten(1, (-1, 2)) * side
        if chance.under(self.flip):
            image, points = mirrored(image, points, swap)
        angle = chance.between(-self.rotation, self.rotation)
        size = 1 + chance.between(-self.scale, self.scale)
        shift = [chance.between(-self.translation, self.translation) * s for s in (width, height)]
        image, points = turned(image, points, angle=angle, size=size, shift=shift)
        if chance.under(self.occlusion):
            image = self._hidden(image, chance)
        return image, (points / side).flatten(1)

    def _hidden(self, image: Tensor, chance: "Chance") -> Tensor:
        from torchvision.transforms.v2 import functional

        height, width = image.shape[-2:]
        h, w = (max(1, round(chance.between(0, self.occluder) * side)) for side in (height, width))
        top, left = chance.below(height - h + 1), chance.below(width - w + 1)
        colour = torch.tensor([chance.below(256) for _ in range(len(image))], dtype=image.dtype)
        return functional.erase(image, top, left, h, w, colour[:, None, None])


def undone(swap: tuple[int, ...]) -> bool:
    """Whether these partners, exchanged twice, are all in their places again."""
    whole = sorted(swap) == list(range(len(swap)))
    return whole and all(swap[partner] == point for point, partner in enumerate(swap))


class Chance:
    """Numbers drawn from one generator."""

    def __init__(self, rng: Generator) -> None:
        self.rng = rng

    def under(self, probability: float) -> bool:
        return float(torch.rand((), generator=self.rng)) < probability

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.rng))

    def below(self, count: int) -> int:
        return int(torch.randint(count, (), generator=self.rng))


def mirrored(image: Tensor, points: Tensor, swap: Tensor) -> tuple[Tensor, Tensor]:
    """Image [C, H, W] and points [N, P, 2] in pixels from the left and top edge, left and right
    exchanged; the points then have their partners' numbers.
    """
    from torchvision.transforms.v2 import functional

    # torchvision mirrors keypoints as places of pixels' centres, and turns them as places between
    # the image's edges: the two differ by half a pixel
    keypoints = _keypoints(points - 0.5, image)
    flipped = functional.horizontal_flip(keypoints).as_subclass(Tensor) + 0.5
    return functional.horizontal_flip(image), flipped[:, swap]


def turned(
    image: Tensor, points: Tensor, *, angle: float, size: float, shift: list[float]
) -> tuple[Tensor, Tensor]:
    """Image [C, H, W] and points [N, P, 2] in pixels from the edges, turned clockwise by `angle`
    degrees around the centre, sized, then shifted by (x, y) pixels.
    """
    from torchvision.transforms.v2 import InterpolationMode, functional

    no_shear = [0.0, 0.0]
    turned_image = functional.affine(
        image, angle, shift, size, no_shear, interpolation=InterpolationMode.BILINEAR
    )
    moved = functional.affine(_keypoints(points, image), angle, shift, size, no_shear)
    return turned_image, moved.as_subclass(Tensor)


def _keypoints(points: Tensor, image: Tensor) -> Tensor:
    from torchvision.tv_tensors import KeyPoints

    height, width = image.shape[-2:]
    return KeyPoints(points, canvas_size=(height, width))  # pyright: ignore[reportCallIssue]  it is made by __new__


def views_of(data: Data, augment: Augment, views: int) -> Iterator[Tensors]:
    """The first `views` views of all faces under `augment`, batch after batch, view 0 first."""
    for view in range(views):
        for batch in data.batches(BATCH, rng=None):
            yield augment({**batch, "view": torch.full_like(batch["id"], view)})
