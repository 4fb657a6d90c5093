"""Clouds as pillars: which points stand in which cell of a grid seen from above.

B: clouds of the batch. T: points kept. P: pillars, cells that hold a point, of all clouds. H, W:
cells of the grid along y and along x. Everything is a function of the clouds and the grid alone, so
a teacher and its students that share a grid share the pillars, in one order.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Tensors

DECORATED = 9  # x, y, z, reflectance; from the pillar's mean: x, y, z; from its middle: x, y
# ragged columns of a batch, each with "<name>_offsets" [B + 1]
POINTS, COUNTS, CELLS = "pillar_points", "pillar_counts", "pillar_cells"


@dataclass(frozen=True, kw_only=True)
class PillarGrid:
    """Where a detector looks, in metres, and what a pillar holds. The defaults are those of KITTI
    in PointPillars (Lang et al. 2019, arXiv 1812.05784) as PointDistiller trains it: 432 x 496
    cells.

    `max_points`: of a pillar, the first in the cloud's order. `max_pillars`: of a cloud, those of
    the most points (ties: by the cell). Differs: the published detector keeps the first it meets.
    """

    x: tuple[float, float] = (0.0, 69.12)
    y: tuple[float, float] = (-39.68, 39.68)
    z: tuple[float, float] = (-3.0, 1.0)
    cell: float = 0.16
    max_points: int = 32
    max_pillars: int = 40_000

    def __post_init__(self) -> None:
        for name in ("x", "y", "z"):
            low, high = getattr(self, name)
            if not low < high:
                raise BadSetting(f"grid: {name} must go up (got {low} to {high})")
        if not self.cell > 0 or min(self.max_points, self.max_pillars) < 1:
            given = f"{self.cell}, {self.max_points}, {self.max_pillars}"
            raise BadSetting(
                f"grid: cell must be > 0, max_points and max_pillars >= 1 (got {given})"
            )
        for name in ("x", "y"):
            low, high = getattr(self, name)
            cells = (high - low) / self.cell
            if abs(cells - round(cells)) > 1e-3 or round(cells) < 1:
                raise BadSetting(
                    f"grid: {name} must be whole cells of {self.cell} m (got {cells:.3f} of them)"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """H, W: cells along y and along x."""
        return (
            round((self.y[1] - self.y[0]) / self.cell),
            round((self.x[1] - self.x[0]) / self.cell),
        )

    def json(self) -> dict[str, Any]:  # Any: JSON values
        """As a model's keyword argument `grid`."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "PillarGrid":  # Any: what `json` gave
        ranges = {name: (float(record[name][0]), float(record[name][1])) for name in "xyz"}
        return cls(
            **ranges,
            cell=float(record["cell"]),
            max_points=int(record["max_points"]),
            max_pillars=int(record["max_pillars"]),
        )


# seconds of training on a CPU: 64 x 64 cells, to 35.2 m
SMALL_GRID = PillarGrid(x=(0.0, 35.2), y=(-17.6, 17.6), cell=0.55, max_pillars=4096)


@torch.no_grad()
def pillars(
    points: Float[Tensor, "total 4"], offsets: Integer[Tensor, " bounds"], grid: PillarGrid
) -> dict[str, Tensor]:
    """The pillars of B clouds laid end to end (bounds: B + 1), as ragged columns of a batch:

    pillar_points float32 [T, 9], decorated (see `DECORATED`), those of a pillar together;
    pillar_counts int64 [P], how many each has; pillar_cells int64 [P, 2], row (y) and column (x).
    Pillars are in the order of cloud, row, column. A cloud without a point in range has none.
    """
    height, width = grid.shape
    clouds = len(offsets) - 1
    cloud = torch.repeat_interleave(torch.arange(clouds, device=points.device), offsets.diff())
    low = points.new_tensor([grid.x[0], grid.y[0]])
    place = ((points[:, :2] - low) / grid.cell).floor().long()
    inside = (place >= 0).all(1) & (place[:, 0] < width) & (place[:, 1] < height)
    inside &= (points[:, 2] >= grid.z[0]) & (points[:, 2] < grid.z[1])
    points, place, cloud = points[inside], place[inside], cloud[inside]
    key, order = ((cloud * height + place[:, 1]) * width + place[:, 0]).sort(stable=True)
    points = points[order]
    cells, owner, counts = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
    cells, owner, counts, kept = _fullest(cells, owner, counts, clouds, grid)
    points = points[kept]
    starts = counts.cumsum(0) - counts
    first = torch.arange(len(owner), device=points.device) - starts[owner] < grid.max_points
    points, owner, counts = points[first], owner[first], counts.clamp_max(grid.max_points)
    held = cells // (height * width)
    per_cloud = torch.bincount(held, minlength=clouds)
    points_of = torch.bincount(held[owner], minlength=clouds)
    within = torch.stack([cells // width % height, cells % width], dim=1)
    return {
        POINTS: _decorated(points, owner, counts, within, grid),
        f"{POINTS}_offsets": _bounds(points_of),
        COUNTS: counts,
        f"{COUNTS}_offsets": _bounds(per_cloud),
        CELLS: within,
        f"{CELLS}_offsets": _bounds(per_cloud),
    }


def _fullest(
    cells: Tensor, owner: Tensor, counts: Tensor, clouds: int, grid: PillarGrid
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cells, owners and counts of at most `max_pillars` a cloud, and which points are kept."""
    every = torch.ones(len(owner), dtype=torch.bool, device=owner.device)
    cloud = cells // (grid.shape[0] * grid.shape[1])
    if int(torch.bincount(cloud, minlength=clouds).max()) <= grid.max_pillars:
        return cells, owner, counts, every
    keep = torch.zeros(len(cells), dtype=torch.bool, device=cells.device)
    for one in range(clouds):
        at = (cloud == one).nonzero()[:, 0]
        best = counts[at].sort(descending=True, stable=True).indices[: grid.max_pillars]
        keep[at[best]] = True
    kept = keep[owner]
    renumbered = (keep.cumsum(0) - 1)[owner[kept]]
    return cells[keep], renumbered, counts[keep], kept


def _decorated(
    points: Tensor, owner: Tensor, counts: Tensor, cells: Tensor, grid: PillarGrid
) -> Float[Tensor, "T 9"]:
    # the CPU adds in the points' order; a GPU's order varies, in double its error is out of sight
    sums = torch.zeros(len(counts), 3, dtype=torch.float64, device=points.device)
    sums.index_add_(0, owner, points[:, :3].double())
    mean = (sums / counts[:, None]).to(points.dtype)
    low = points.new_tensor([grid.x[0], grid.y[0]])
    middle = (cells.flip(1).to(points.dtype) + 0.5) * grid.cell + low
    return torch.cat([points, points[:, :3] - mean[owner], points[:, :2] - middle[owner]], dim=1)


def _bounds(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def with_pillars(batch: Tensors, grid: PillarGrid) -> Tensors:
    """The batch with its pillars, made of "points" where it does not have them yet."""
    if POINTS in batch:
        return batch
    points = named(batch, "points", what="column", where="pillars")
    offsets = named(batch, "points_offsets", what="column", where="pillars")
    if not bool(points.isfinite().all()):
        row = int((~points.isfinite().all(1)).nonzero()[0, 0])
        cloud = int(torch.searchsorted(offsets, row, right=True)) - 1
        raise BadData(f"pillars: a point of cloud {cloud} is not finite; remove such points")
    return {**batch, **pillars(points, offsets, grid)}
