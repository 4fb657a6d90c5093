"""A compact PointPillars in plain torch, by name, at any width.

B: clouds. P: pillars of all clouds. C: the width. H, W: the grid's cells. h, w: cells of the head's
map, H and W over the first stride.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stillhouse.artifact import Model
from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.objectives.inputs import fraction
from stillhouse.objectives.objective import Tensors
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.detectors.anchors import PLACES, anchors
from stillhouse_pointcloud.detectors.found import Found, Held, Picking, picked
from stillhouse_pointcloud.detectors.pillars import (
    CELLS,
    COUNTS,
    DECORATED,
    POINTS,
    PillarGrid,
    with_pillars,
)

NAME = re.compile(r"pillars-([1-9]\d*)")
LAYERS, STRIDES, UPS = (3, 5, 5), (2, 2, 2), (1, 2, 4)
EPS, MOMENTUM = 1e-3, 0.01  # of every BatchNorm, as PointPillars' authors train
PRIOR = 0.01  # what fresh weights believe of an anchor


class PillarEncoder(nn.Module):
    """A PointNet a pillar (arXiv 1812.05784, sec. 2.1): linear layer, BatchNorm and ReLU of each
    decorated point, the maximum over a pillar's points. Differs: pillars are not filled up with
    points of zeros, so these are not in the BatchNorm.
    """

    def __init__(self, width: int, *, momentum: float) -> None:
        super().__init__()
        self.linear = nn.Linear(DECORATED, width, bias=False)
        self.norm = nn.BatchNorm1d(width, eps=EPS, momentum=momentum)

    def forward(self, points: Float[Tensor, "T 9"], counts: Tensor) -> Float[Tensor, "P C"]:
        if self.training and len(points) < 2:
            raise BadData(
                f"pillars: {len(points)} point(s) of the batch are in the grid's range, training "
                "needs 2; widen the range or leave such clouds out"
            )
        each = F.relu(self.norm(self.linear(points)))
        owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        # each is >= 0, and every pillar has a point
        found = each.new_zeros(len(counts), each.shape[1])
        return found.scatter_reduce(0, owner[:, None].expand_as(each), each, "amax")


def _conv(inside: int, outside: int, stride: int, momentum: float) -> list[nn.Module]:
    conv = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outside, eps=EPS, momentum=momentum), nn.ReLU()]


def _block(inside: int, outside: int, layers: int, stride: int, momentum: float) -> nn.Sequential:
    first = _conv(inside, outside, stride, momentum)
    rest = (m for _ in range(layers) for m in _conv(outside, outside, 1, momentum))
    return nn.Sequential(*first, *rest)


def _up(inside: int, outside: int, stride: int, momentum: float) -> nn.Sequential:
    conv = nn.ConvTranspose2d(inside, outside, stride, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside, eps=EPS, momentum=momentum), nn.ReLU())


class Head(nn.Module):
    """For each anchor a logit a class, a box as `anchors.encode` has it, and the heading's half."""

    def __init__(self, inside: int) -> None:
        super().__init__()
        self.cls = nn.Conv2d(inside, PLACES * len(CLASSES), 1)
        self.box = nn.Conv2d(inside, PLACES * 7, 1)
        self.dir = nn.Conv2d(inside, PLACES * 2, 1)
        for conv in (self.cls, self.box, self.dir):
            nn.init.normal_(conv.weight, std=0.01)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        assert self.cls.bias is not None
        prior = torch.tensor(PRIOR / (1 - PRIOR)).log()
        nn.init.constant_(self.cls.bias, prior.item())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"cls": self.cls(x), "box": self.box(x), "dir": self.dir(x)}


class PillarDetector(nn.Module):
    """A batch of clouds (points [total, 4], points_offsets [B + 1], or their pillars) -> the head's
    maps cls [B, 18, h, w], box [B, 42, h, w], dir [B, 12, h, w]; and what can be distilled, by the
    path of the module that gives it: voxels [P, C], backbone.0 to backbone.2, neck; bev
    [B, C, H, W], the canvas; voxel_counts [P], points in each pillar; voxel_offsets [B + 1].

    PointPillars (Lang et al. 2019, arXiv 1812.05784): pillars, a PointNet of `width` channels, a
    canvas, three blocks of width, 2 and 4 times width channels, each brought to the head's map in 2
    times width channels, an anchor head. `boxes` turns its maps into boxes. `momentum` is every
    BatchNorm's: a training of some hundred steps needs more than the published 0.01.
    """

    anchors: Tensor

    def __init__(
        self,
        *,
        width: int,
        grid: Mapping[str, Any],  # Any: JSON values of PillarGrid
        layers: Sequence[int] = LAYERS,
        strides: Sequence[int] = STRIDES,
        momentum: float = MOMENTUM,
    ) -> None:
        super().__init__()
        self.grid, self.stride, self.width = PillarGrid.of(grid), strides[0], width
        _check(self.grid, width, layers, strides)
        # not persistent: they follow from the spec
        self.register_buffer("anchors", anchors(self.grid, self.stride), persistent=False)
        widths = (width, width, 2 * width, 4 * width)
        self.voxels = PillarEncoder(width, momentum=momentum)
        self.backbone = nn.ModuleList(
            _block(widths[i], widths[i + 1], layers[i], strides[i], momentum) for i in range(3)
        )
        ups = (1, strides[1], strides[1] * strides[2])
        self.neck = nn.ModuleList(_up(widths[i + 1], 2 * width, ups[i], momentum) for i in range(3))
        self.head = Head(6 * width)

    def forward(self, batch: Tensors) -> dict[str, Tensor]:
        batch = with_pillars(batch, self.grid)
        counts, offsets = batch[COUNTS], batch[f"{COUNTS}_offsets"]
        voxels = self.voxels(batch[POINTS], counts)
        bev = self.canvas(voxels, batch[CELLS], offsets)
        return {
            "voxels": voxels,
            "voxel_counts": counts,
            "voxel_offsets": offsets,
            "bev": bev,
            **self.maps(bev),
        }

    def maps(self, bev: Float[Tensor, "B C H W"]) -> dict[str, Tensor]:
        """From the canvas on: the head's maps, the backbone's and the neck's."""
        found: list[Tensor] = []
        x = bev
        for block in self.backbone:
            x = block(x)
            found.append(x)
        neck = torch.cat([up(x) for up, x in zip(self.neck, found, strict=True)], dim=1)
        each = {f"backbone.{i}": x for i, x in enumerate(found)}
        return {**self.head(neck), **each, "neck": neck}

    def canvas(
        self, voxels: Float[Tensor, "P C"], cells: Tensor, offsets: Tensor
    ) -> Float[Tensor, "B C H W"]:
        """Each pillar at its cell, 0 elsewhere."""
        (height, width), clouds = self.grid.shape, len(offsets) - 1
        each = torch.arange(clouds, device=cells.device)
        cloud = torch.repeat_interleave(each, offsets.diff())
        at = (cloud * height + cells[:, 0]) * width + cells[:, 1]
        flat = voxels.new_zeros(clouds * height * width, voxels.shape[1])
        flat = flat.index_copy(0, at, voxels)
        return flat.view(clouds, height, width, -1).permute(0, 3, 1, 2)

    @property
    def area(self) -> PillarGrid:
        return self.grid

    def held(self, batch: Tensors) -> Held:
        """The batch with its pillars, and their decorated points."""
        seen = with_pillars(batch, self.grid)
        return Held(
            batch=seen,
            points=seen[POINTS],
            counts=seen[COUNTS],
            offsets=seen[f"{COUNTS}_offsets"],
        )

    @torch.no_grad()
    def boxes(self, outputs: Tensors, picking: Picking) -> list[Found]:
        """What each cloud holds, by the maps that `forward` gave."""
        maps = (outputs["cls"], outputs["box"], outputs["dir"])
        return picked(*maps, anchors=self.anchors, picking=picking)


def _check(grid: PillarGrid, width: int, layers: Sequence[int], strides: Sequence[int]) -> None:
    if len(layers) != 3 or len(strides) != 3:
        raise BadSetting(
            f"pillars: layers and strides need three numbers (got {len(layers)}, {len(strides)})"
        )
    if width < 1 or min(layers) < 0 or min(strides) < 1:
        raise BadSetting(
            "pillars: width and strides must be >= 1, layers >= 0 "
            f"(got {width}, {list(strides)}, {list(layers)})"
        )
    whole = strides[0] * strides[1] * strides[2]
    if any(side % whole for side in grid.shape):
        rows, columns = grid.shape
        raise BadSetting(
            f"grid: {rows} x {columns} cells do not divide by the strides' product, {whole}"
        )


def model(
    name: str,
    *,
    grid: PillarGrid,
    layers: Sequence[int] = LAYERS,
    strides: Sequence[int] = STRIDES,
    momentum: float = MOMENTUM,
) -> Model:
    """The spec of "pillars-<width>": 64 is PointPillars as published (4.83 M parameters), 32 and 16
    PointDistiller's 4x and 16x students (1.22 M, 0.31 M). Raises UnknownName.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise UnknownName("detector", name, ["pillars-<width>", "pillars-64", "pillars-32"])
    _check(grid, int(found[1]), layers, strides)
    fraction("momentum", momentum)
    kwargs = {"width": int(found[1]), "grid": grid.json(), "momentum": momentum}
    return Model(
        build=PillarDetector,
        kwargs={**kwargs, "layers": list(layers), "strides": list(strides)},
    )
