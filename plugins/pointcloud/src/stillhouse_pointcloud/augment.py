"""Augmentation that moves boxes with the points, as a pure function of (seed, sample id, view)."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from stillhouse.data.data import row_of
from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import fraction
from stillhouse.objectives.objective import Tensors
from stillhouse.training import mix

BOXES = ("boxes", "ignored")


@dataclass(frozen=True, kw_only=True)
class SceneAugment:
    """Flip, rotation and scaling of whole scenes: points [total, 4] with the boxes [total, 7] of
    `BOXES`, where the batch has them.

    View 0 is the scene as it is. In the others y changes its sign with probability `flip`, the
    scene turns about the sensor's upright axis by up to `rotation` radians either way, and x, y, z
    and sizes grow by up to 1 +- `scale`, each evenly drawn. Yaws stay within [-pi, pi). The
    defaults are those of KITTI in mmdetection3d. `projection` stays: it no longer fits.
    """

    flip: float = 0.5
    rotation: float = math.pi / 4
    scale: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise BadSetting(f"flip must be >= 0 and <= 1 (got {self.flip})")
        if not 0 <= self.rotation <= math.pi:
            raise BadSetting(f"rotation must be >= 0 and <= pi radians (got {self.rotation})")
        fraction("scale", self.scale)

    def __call__(self, batch: Tensors) -> Tensors:
        names = [name for name in ("points", *BOXES) if name in batch]
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        pairs = zip(batch["id"].tolist(), batch["view"].tolist(), strict=True)
        for row, (number, view) in enumerate(pairs):
            change = self._drawn(number, view)
            for name in names:
                parts[name].append(moved(row_of(batch, name, row), *change))
        return {**batch, **{name: torch.cat(rows) for name, rows in parts.items()}}

    def _drawn(self, number: int, view: int) -> tuple[bool, float, float]:
        if view == 0:
            return False, 0.0, 1.0
        rng = Generator().manual_seed(mix(self.seed, number, view))
        flip, turn, size = torch.rand(3, generator=rng, dtype=torch.float64).tolist()
        angle, factor = (2 * turn - 1) * self.rotation, 1 + (2 * size - 1) * self.scale
        return flip < self.flip, angle, factor


def moved(
    rows: Float[Tensor, "n C"], flip: bool, angle: float, factor: float
) -> Float[Tensor, "n C"]:
    """Points [n, 4] or boxes [n, 7], mirrored in y if `flip`, then turned by `angle`, then times
    `factor`.
    """
    if not flip and angle == 0 and factor == 1:
        return rows
    x, y = rows[:, 0], -rows[:, 1] if flip else rows[:, 1]
    cos, sin = math.cos(angle), math.sin(angle)
    place = torch.stack([x * cos - y * sin, x * sin + y * cos, rows[:, 2]], dim=1) * factor
    if rows.shape[1] != 7:
        return torch.cat([place, rows[:, 3:]], dim=1)
    yaw = (-rows[:, 6] if flip else rows[:, 6]) + angle
    yaw = (yaw + math.pi) % (2 * math.pi) - math.pi
    return torch.cat([place, rows[:, 3:6] * factor, yaw[:, None]], dim=1)
