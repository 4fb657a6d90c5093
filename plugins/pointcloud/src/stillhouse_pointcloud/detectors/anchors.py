"""Anchors of a head's map, boxes as differences from them, and which anchor answers for which box.

A: anchors of a map, in the order row (y), column (x), class, heading. M: boxes of a cloud, as in
`boxes`: x, y, z of the centre, length, width, height, yaw.
"""

import math

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from stillhouse.errors import BadSetting
from stillhouse_pointcloud.boxes import CLASSES
from stillhouse_pointcloud.detectors.pillars import PillarGrid

GROUND = -1.73  # of KITTI's road below the sensor, metres
SIZES = ((3.9, 1.6, 1.56), (0.8, 0.6, 1.73), (1.76, 0.6, 1.73))  # arXiv 1812.05784, sec. 4.1
HEADINGS = (0.0, math.pi / 2)
MATCHED, UNMATCHED = (0.6, 0.5, 0.5), (0.45, 0.35, 0.35)
PLACES = len(CLASSES) * len(HEADINGS)  # anchors of one cell
BACKGROUND, SKIPPED = len(CLASSES), -1  # labels of an anchor beside the classes'
TURN = math.pi / 4  # where a heading's halves part: from -45 to 135 degrees is half 0


def anchors(grid: PillarGrid, stride: int) -> Float[Tensor, "A 7"]:
    """The anchors of a map whose cells are `stride` pillars wide: at each cell's middle one of
    `SIZES` a class and heading, standing on the road.
    """
    height, width = grid.shape
    if height % stride or width % stride:
        raise BadSetting(
            f"grid: {height} x {width} cells do not divide by the head's stride, {stride}"
        )
    step = stride * grid.cell
    y = grid.y[0] + (torch.arange(height // stride) + 0.5) * step
    x = grid.x[0] + (torch.arange(width // stride) + 0.5) * step
    sizes = torch.tensor(SIZES)
    kinds = torch.cat(
        [
            (GROUND + sizes[:, 2:] / 2)[:, None].expand(-1, len(HEADINGS), -1),
            sizes[:, None].expand(-1, len(HEADINGS), -1),
            torch.tensor(HEADINGS)[None, :, None].expand(len(sizes), -1, -1),
        ],
        dim=2,
    ).reshape(PLACES, 5)
    whole = torch.empty(len(y), len(x), PLACES, 7)
    whole[..., 0], whole[..., 1] = x[None, :, None], y[:, None, None]
    whole[..., 2:] = kinds
    return whole.reshape(-1, 7)


def encode(boxes: Float[Tensor, "M 7"], at: Float[Tensor, "M 7"]) -> Float[Tensor, "M 7"]:
    """Boxes as differences from anchors, arXiv 1812.05784, sec. 2.3: x and y over the anchor's
    diagonal, z over its height, logarithms of sizes, and the plain difference of yaws.
    """
    diagonal = at[:, 3:5].norm(dim=1, keepdim=True)
    return torch.cat(
        [
            (boxes[:, :2] - at[:, :2]) / diagonal,
            (boxes[:, 2:3] - at[:, 2:3]) / at[:, 5:6],
            (boxes[:, 3:6] / at[:, 3:6]).log(),
            boxes[:, 6:] - at[:, 6:],
        ],
        dim=1,
    )


def decode(
    found: Float[Tensor, "M 7"], half: Integer[Tensor, " M"], at: Float[Tensor, "M 7"]
) -> Float[Tensor, "M 7"]:
    """Boxes of differences from anchors: the inverse of `encode`, the yaw in the given `half` of
    headings and within [-pi, pi). Sizes are at most e^4 times the anchor's.
    """
    diagonal = at[:, 3:5].norm(dim=1, keepdim=True)
    # a network's sine of a difference knows the yaw up to a half turn
    turned = (found[:, 6] + at[:, 6] + TURN) % math.pi - TURN + math.pi * half
    return torch.cat(
        [
            found[:, :2] * diagonal + at[:, :2],
            found[:, 2:3] * at[:, 5:6] + at[:, 2:3],
            found[:, 3:6].clamp(-4, 4).exp() * at[:, 3:6],
            ((turned + math.pi) % (2 * math.pi) - math.pi)[:, None],
        ],
        dim=1,
    )


def half_of(yaw: Float[Tensor, " M"]) -> Integer[Tensor, " M"]:
    """0 for headings within [-45, 135) degrees, else 1."""
    return ((yaw + TURN) % (2 * math.pi) >= math.pi).long()


def nearest_iou(a: Float[Tensor, "A 7"], b: Float[Tensor, "M 7"]) -> Float[Tensor, "A M"]:
    """IoU from above of boxes turned to the nearest of the axes, by which anchors are matched."""
    (low_a, high_a), (low_b, high_b) = _upright(a), _upright(b)
    high = torch.minimum(high_a[:, None], high_b)
    inner = (high - torch.maximum(low_a[:, None], low_b)).clamp_min(0).prod(2)
    areas = (a[:, 3] * a[:, 4])[:, None] + b[:, 3] * b[:, 4]
    return inner / (areas - inner)


def _upright(boxes: Tensor) -> tuple[Tensor, Tensor]:
    across = boxes[:, 6].sin().abs() > math.sqrt(0.5)
    sides = torch.where(across[:, None], boxes[:, [4, 3]], boxes[:, [3, 4]])
    return boxes[:, :2] - sides / 2, boxes[:, :2] + sides / 2


@torch.no_grad()
def assigned(
    at: Float[Tensor, "A 7"],
    boxes: Float[Tensor, "M 7"],
    labels: Integer[Tensor, " M"],
    skipped: Float[Tensor, "S 7"],
) -> tuple[Integer[Tensor, " A"], Integer[Tensor, " A"]]:
    """Target class of each anchor, and for a class the row of its box (else 0).

    Anchors of a class see boxes of that class alone. By the IoU of `nearest_iou`, an anchor is a
    box's at `MATCHED` or above, and for each box the highest above 0 is (arXiv 1812.05784, sec.
    4.1); `BACKGROUND` below `UNMATCHED`; `SKIPPED` between, and where it would be background but
    overlaps one of `skipped` as much.

    Differs: mmdetection3d gives a box its highest anchor only where that is at `UNMATCHED` or above
    (`min_pos_iou`), so that some boxes have none; the published detector learns Vans as background.
    """
    targets = torch.full((len(at),), BACKGROUND, device=at.device)
    which = torch.zeros(len(at), dtype=torch.long, device=at.device)
    kinds = (torch.arange(len(at), device=at.device) // len(HEADINGS)) % len(CLASSES)
    for label in range(len(CLASSES)):
        mine, theirs = (kinds == label).nonzero()[:, 0], (labels == label).nonzero()[:, 0]
        one = torch.full((len(mine),), BACKGROUND, device=at.device)
        if len(skipped):
            near = nearest_iou(at[mine], skipped).amax(1) >= UNMATCHED[label]
            one[near] = SKIPPED
        if len(theirs):
            iou = nearest_iou(at[mine], boxes[theirs])
            most, box = iou.max(1)
            one[most >= UNMATCHED[label]] = SKIPPED
            one[most >= MATCHED[label]] = label
            rows, columns = _best(iou)
            one[rows], box[rows] = label, columns
            which[mine] = torch.where(one == label, theirs[box], 0)
        targets[mine] = one
    return targets, which


def _best(iou: Float[Tensor, "A M"]) -> tuple[Integer[Tensor, " R"], Integer[Tensor, " R"]]:
    """Anchors that overlap a box as much as any does, and the box: the last, if it is several's."""
    most = iou.amax(0)
    tops: Bool[Tensor, "A M"] = (iou == most) & (most > 0)
    rows = tops.any(1).nonzero()[:, 0]
    last = tops[rows].long() * torch.arange(1, iou.shape[1] + 1, device=iou.device)
    return rows, last.amax(1) - 1
