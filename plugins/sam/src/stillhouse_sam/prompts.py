"""Point and box prompts, drawn from masks.

N: masks. H, W: their sides in pixels. A point is (x, y), the whole-numbered pixel it lies in. Every
draw comes from `rng`, a generator on the CPU, wherever the masks are; so the same seed gives the
same points on every device.
"""

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Generator, Tensor

from stillhouse.errors import BadData, BadSetting

BITS = 8  # pixels a byte of a packed mask
MIDDLE = 0.5  # from the corner of a pixel to its middle
CORNERS = (2, 3)  # labels of a box's top left and bottom right
NOTHING = -1  # label of a point that only fills its place


def points_in(mask: Bool[Tensor, "N H W"], *, rng: Generator) -> Int64[Tensor, "N 2"]:
    """One point of each mask, uniformly; raises BadData for a mask without a pixel."""
    return _drawn(mask, 1, rng=rng)[:, 0]


def _drawn(mask: Tensor, count: int, *, rng: Generator) -> Tensor:
    """`count` points [N, K, 2] of each mask; a number each is drawn for all masks' first points,
    then for the second ones.
    """
    area = mask.flatten(1).cumsum(1, dtype=torch.int32)
    counts = area[:, -1].double()
    if bool((counts == 0).any()):
        raise BadData(f"mask {int((counts == 0).nonzero()[0])} is empty; no point can lie in it")
    chance = torch.rand(count, len(mask), generator=rng, dtype=torch.float64).to(mask.device)
    rank = (chance * counts).floor().clamp_max(counts - 1).int() + 1
    place = torch.searchsorted(area, rank.T.contiguous())
    return _xy(place, mask.shape[-1])


def sample_hard_points(
    truth: Bool[Tensor, "N H W"], predicted: Bool[Tensor, "N H W"], *, rng: Generator
) -> Int64[Tensor, "N 2"]:
    """One point of each mask's missed part, truth & ~predicted, uniformly (TinySAM, arXiv
    2312.13789: hard prompt sampling, P_{i+1} ~ M_gt - M_i).

    Where nothing was missed the point is drawn from the truth (reconstruction: the paper does not
    say). One number is drawn a mask in any case. Raises BadData for an empty truth.
    """
    _alike(truth, predicted)
    return points_in(_or_truth(truth & ~predicted, truth), rng=rng)


def error_points(
    truth: Bool[Tensor, "N H W"], predicted: Bool[Tensor, "N H W"], count: int, *, rng: Generator
) -> tuple[Int64[Tensor, "N K 2"], Int64[Tensor, "N K"]]:
    """`count` points of each mask's error region, truth ^ predicted, uniformly and with
    replacement; label 1 in what is missed, 0 in what is wrongly taken (SAM, arXiv 2304.02643, app.
    A). Where there is no error the points are of the truth. Raises BadData where both are empty.
    """
    _alike(truth, predicted)
    points = _drawn(_or_truth(truth ^ predicted, truth), count, rng=rng)
    rows = torch.arange(len(truth), device=truth.device)[:, None]
    return points, truth[rows, points[..., 1], points[..., 0]].long()


def in_frame(points: Int64[Tensor, "*N 2"], side: float) -> Float[Tensor, "*N 2"]:
    """Pixels of masks as a prompt encoder takes points: in pixels of the frame, of which one of a
    mask's has `side`. SAM adds the half of a frame's pixel itself.
    """
    return (points.float() + MIDDLE) * side - MIDDLE


def farthest_click(
    truth: Bool[Tensor, "N H W"], predicted: Bool[Tensor, "N H W"]
) -> tuple[Int64[Tensor, "N 2"], Int64[Tensor, "N"]]:
    """The next click of an evaluation: the pixel of the error region farthest from its edge.

    Of the missed region (truth & ~predicted) and the wrongly taken one (predicted & ~truth), the
    one whose farthest pixel is farther, by the Euclidean distance transform with all outside the
    image counted as outside the region; label 1 in a missed region, 0 in a wrongly taken one.
    Equally far: the missed one; equal pixels: the first in reading order. Without any error, the
    pixel of the truth farthest from its edge, label 1 (reconstruction). Nothing is drawn. Raises
    BadData where both masks are empty.
    """
    _alike(truth, predicted)
    points = torch.zeros(len(truth), 2, dtype=torch.int64)
    labels = torch.ones(len(truth), dtype=torch.int64)
    pairs = zip(truth.cpu(), predicted.cpu(), strict=True)
    for row, (whole, taken) in enumerate(pairs):
        missed, wrong = _depth(whole & ~taken), _depth(taken & ~whole)
        depth = missed if bool(missed.max() >= wrong.max()) else wrong
        if depth.max() == 0:
            depth = _depth(whole)
            if depth.max() == 0:
                raise BadData(f"mask {row} is empty, as truth and as predicted; nowhere to click")
        points[row] = _xy(depth.argmax(), depth.shape[-1])
        labels[row] = int(depth is not wrong)
    return points.to(truth.device), labels.to(truth.device)


def boxes_of(masks: Bool[Tensor, "*N H W"]) -> Float[Tensor, "*N 4"]:
    """The smallest box around each mask: left, top, right, bottom edge in pixels, so that a single
    pixel (x, y) has the box (x, y, x + 1, y + 1), as in COCO; four zeros for an empty mask.
    """
    edges: list[Tensor] = []
    for side in (masks.any(-2), masks.any(-1)):  # columns, then rows
        length = side.shape[-1]
        place = torch.arange(length, device=masks.device)
        low = torch.where(side, place, length).amin(-1)
        high = torch.where(side, place + 1, 0).amax(-1)
        edges += [low.minimum(high), high]
    left, right, top, bottom = edges
    return torch.stack([left, top, right, bottom], -1).float()


def box_prompts(
    boxes: Float[Tensor, "*N 4"],
) -> tuple[Float[Tensor, "*N 2 2"], Int64[Tensor, "*N 2"]]:
    """Boxes (left, top, right, bottom) as a SAM's own forward and its ONNX files take them: two
    corners, of label 2 and 3.
    """
    points = boxes.unflatten(-1, (2, 2))
    labels = torch.tensor(CORNERS, device=boxes.device).expand(points.shape[:-1])
    return points, labels.contiguous()


def click_prompts(
    points: Float[Tensor, "*N 2"],
) -> tuple[Float[Tensor, "*N 2 2"], Int64[Tensor, "*N 2"]]:
    """One click on each object: a point of label 1, and of label -1 the one that stands for the
    missing box.
    """
    both = torch.stack([points, torch.zeros_like(points)], -2)
    labels = torch.tensor([1, NOTHING], device=points.device).expand(both.shape[:-1])
    return both, labels.contiguous()


def first_prompts(
    masks: Bool[Tensor, "B L L"],
    valid: Bool[Tensor, " B"],
    boxes: Float[Tensor, "B 4"],
    *,
    side: float,
    clicks: bool,
) -> dict[str, Tensor]:
    """A prompt an image, point_coords [B, 1, 2, 2] and point_labels [B, 1, 2]: the box of its
    mask; with `clicks`, of every other image the pixel of that mask which is farthest from its
    edge, where there is a mask. `side`: pixels of the frame of which one of a mask's has that many.
    """
    points, labels = box_prompts(boxes)
    some = valid & (torch.arange(len(boxes)) % 2 == 1) & clicks
    if bool(some.any()):
        truth = masks[some]
        middle, _ = farthest_click(truth, torch.zeros_like(truth))
        points, labels = points.clone(), labels.clone()
        points[some], labels[some] = click_prompts(in_frame(middle, side))
    return {"point_coords": points[:, None], "point_labels": labels[:, None]}


def pack_masks(masks: Bool[Tensor, "*N H W"]) -> UInt8[Tensor, "*N H w"]:
    """Eight pixels of a row in a byte, the leftmost in the highest bit, as numpy.packbits has it;
    w = W / 8. Raises BadSetting unless 8 divides W.
    """
    if masks.shape[-1] % BITS:
        raise BadSetting(f"masks are {masks.shape[-1]} pixels wide; packing takes multiples of 8")
    return (masks.unflatten(-1, (-1, BITS)) * _weights(masks)).sum(-1, dtype=torch.uint8)


def unpack_masks(packed: UInt8[Tensor, "*N H w"]) -> Bool[Tensor, "*N H W"]:
    """Undoes `pack_masks`; W = 8 w."""
    return (packed[..., None] & _weights(packed)).ne(0).flatten(-2)


def _weights(like: Tensor) -> Tensor:
    return torch.tensor([1 << bit for bit in reversed(range(BITS))], dtype=torch.uint8).to(
        like.device
    )


def _or_truth(region: Tensor, truth: Tensor) -> Tensor:
    """The region of each mask [N, H, W]; where it has no pixel, the truth."""
    return torch.where(region.flatten(1).any(1)[:, None, None], region, truth)


def _xy(place: Tensor, width: int) -> Tensor:
    return torch.stack([place % width, place // width], -1)


def _depth(region: Tensor) -> Tensor:
    """Distance of each pixel [H, W] to the nearest one outside the region; 0 outside."""
    from scipy.ndimage import distance_transform_edt

    padded = torch.nn.functional.pad(region, (1, 1, 1, 1))
    return torch.from_numpy(distance_transform_edt(padded.numpy()))[1:-1, 1:-1]


def _alike(truth: Tensor, predicted: Tensor) -> None:
    if truth.shape != predicted.shape:
        raise BadSetting(
            f"truth is {list(truth.shape)} and predicted {list(predicted.shape)}; both must be "
            "[N, H, W]"
        )
