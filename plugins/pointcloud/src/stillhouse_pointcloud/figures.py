"""Figures of clouds and boxes: from above, in the camera's image, and what a loss chose."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor, nn

from stillhouse.data import Data, read_image
from stillhouse.data.data import row_of
from stillhouse.errors import BadData
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work
from stillhouse_pointcloud.boxes import CLASSES, EDGES, NEAR, corners, project
from stillhouse_pointcloud.camera_images import CAMERA_IMAGE
from stillhouse_pointcloud.detectors import Found, Picking
from stillhouse_pointcloud.detectors.found import Area, Held, Voxelised, detector
from stillhouse_pointcloud.objectives import Chosen, LocalGraphDistillation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

TRUTH, MUTED = "#00805c", "#9aa5b1"
COLOURS = ("#c8500a", "#0069a8", "#a8457f")  # of what is found: car, pedestrian, cyclist
SHOWN = Picking(score=0.3)
FAINT = 1e-3  # the least weight that is coloured, of the largest


@dataclass(frozen=True, kw_only=True)
class BirdsEye:
    """`columns` clouds drawn by `seed`, seen from above, x upwards: a row of the true boxes, then a
    row a model, its boxes in their class's colour over the truth. A stroke leads to the front.

    `lines` maps what a row is called to its role; `picking` how confident a drawn box is.
    """

    lines: Mapping[str, str]
    name: str = "birds-eye"
    columns: int = 3
    seed: int = 0
    picking: Picking = SHOWN

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        batch = _first(data, self.columns, self.seed)
        rows: dict[str, Sequence[Found | None]] = {"truth": [None] * _clouds(batch)}
        rows |= _predicted(models, self.lines, batch, self.picking)
        figure, axes = _page(rows, self.columns, (2.7, 2.7))
        for row, (line, found) in enumerate(rows.items()):
            for place in range(self.columns):
                axis = axes[row, place]
                _bare(axis)
                if place < len(found):
                    truth = _part(batch, "boxes", place)
                    view_from_above(axis, _part(batch, "points", place), truth, found[place])
            axes[row, 0].set_ylabel(line, fontsize=9)
        legend(figure)
        return figure


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """The first `columns` clouds' boxes in the camera's image, a row a model: the truth green,
    what is found in its class's colour.

    Images are those of the data (see `camera_images`); where it has none, the points stand for it,
    near ones dark.
    """

    lines: Mapping[str, str]
    name: str = "overlay"
    columns: int = 2
    picking: Picking = SHOWN

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        batch = _first(data, self.columns, None)
        rows = _predicted(models, self.lines, batch, self.picking)
        images = [_image(batch, place) for place in range(_clouds(batch))]
        figure, axes = _page(rows, self.columns, (5.4, 1.75))
        for row, (line, found) in enumerate(rows.items()):
            for place in range(self.columns):
                axis = axes[row, place]
                _bare(axis)
                if place < len(found):
                    projection = batch["projection"][place].double().numpy()
                    wide, high = batch["image_size"][place].tolist()
                    points, image = _part(batch, "points", place), images[place]
                    backdrop(axis, points, projection, image, (wide, high))
                    truth = _part(batch, "boxes", place)
                    in_image(axis, truth, projection, TRUTH)
                    found_in_image(axis, found[place], projection)
            axes[row, 0].set_ylabel(line, fontsize=9)
        legend(figure)
        return figure


@dataclass(frozen=True, kw_only=True)
class ChosenPoints:
    """`columns` clouds seen from above: the points of the pillars that the graph loss chose, by the
    weight it gave them (mean 1; logarithmic), over the others in grey and the true boxes.

    `graphs` is the role that holds a `LocalGraphDistillation`, run on the pillars of `teacher`
    and `student`.
    """

    teacher: str = "teacher"
    student: str = "student"
    graphs: str = "graphs"
    name: str = "chosen-points"
    columns: int = 3
    seed: int = 0

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        teacher, student = (_voxelised(models, role) for role in (self.teacher, self.student))
        loss = _graph_loss(models, self.graphs)
        device = next(models[self.teacher].parameters()).device
        batch = _first(data, self.columns, self.seed)
        held = teacher.held({k: v.to(device) for k, v in batch.items()})
        with torch.no_grad():
            sides = [module(held.batch) for module in (teacher, student)]
            cuts = held.offsets.diff().tolist()
            voxels = [side["voxels"].split(cuts) for side in sides]
            loss(*voxels, held.counts.split(cuts))
        weights = _weights(loss.chosen, cuts)
        figure, axes = _page({"chosen": [None]}, self.columns, (3.2, 3.0))
        last: PathCollection | None = None
        every = torch.cat(weights)
        every = every[every.isfinite()]
        if len(every) == 0:
            raise BadData("chosen points: the loss chose none; are there points in the range?")
        most = every.amax().item()
        # equal weights still need a scale
        span = (min(max(every.amin().item(), most * FAINT), most / 2), most)
        for place, axis in enumerate(axes[0]):
            _bare(axis)
            if place < len(cuts):
                last = _weighed(axis, held, place, weights[place], span)
                truth = _part(batch, "boxes", place)
                outlines(axis, truth, TRUTH)
                _to_scale(axis)
        assert last is not None
        figure.colorbar(last, ax=axes, label="weight in the loss", shrink=0.8)
        return figure


def _weights(chosen: Sequence[Chosen], cuts: Sequence[int]) -> list[Tensor]:
    """The weight of every pillar, a tensor a cloud; NaN for one that was not chosen."""
    total = sum(cuts)
    whole = torch.full((total,), float("nan"))
    # of all clouds end to end where the loss takes them as one
    together = len(chosen) == 1 and len([n for n in cuts if n]) > 1
    starts = [0] if together else [sum(cuts[:i]) for i, n in enumerate(cuts) if n]
    for start, one in zip(starts, chosen, strict=True):
        whole[start + one.items.cpu()] = one.weights.float().cpu()
    return list(whole.split(list(cuts)))


def _weighed(
    axis: "Axes", held: Held, place: int, weights: Tensor, span: tuple[float, float]
) -> "PathCollection":
    from matplotlib.colors import LogNorm

    start, stop = held.offsets[place : place + 2].tolist()
    counts = held.counts[start:stop].cpu().numpy()
    first = int(held.counts[:start].sum())
    at = held.points[first : first + int(counts.sum())].double().cpu().numpy()
    each = np.repeat(weights.numpy(), counts)
    chosen = np.isfinite(each)
    axis.scatter(-at[~chosen, 1], at[~chosen, 0], s=0.6, c=MUTED, linewidths=0)
    norm = LogNorm(vmin=span[0], vmax=span[1], clip=True)
    order = np.argsort(each[chosen], kind="stable")  # the heaviest on top
    x, y, colour = (a[chosen][order] for a in (-at[:, 1], at[:, 0], each))
    return axis.scatter(x, y, s=2.0, c=colour, cmap="viridis_r", norm=norm, linewidths=0)


def _graph_loss(models: Models, role: str) -> LocalGraphDistillation:
    module = named(models, role, what="role", where="chosen points")
    found = [m for m in module.modules() if isinstance(m, LocalGraphDistillation)]
    if not found:
        raise BadData(f"role '{role}': a {type(module).__name__} holds no graph distillation")
    return found[0]


def _voxelised(models: Models, role: str) -> Voxelised:
    module = named(models, role, what="role", where="chosen points")
    if not isinstance(module, Voxelised):
        raise BadData(f"role '{role}': a {type(module).__name__} has no pillars to draw")
    return module


def view_from_above(
    axis: "Axes", points: Array, truth: Array, found: Found | None, area: Area | None = None
) -> None:
    """Points, true boxes, and over them those found, each in its class's colour."""
    axis.scatter(-points[:, 1], points[:, 0], s=0.6, c=MUTED, linewidths=0)
    outlines(axis, truth, TRUTH)
    if found is not None:
        for label, colour in enumerate(COLOURS):
            boxes = found.boxes[found.labels == label].double().numpy()
            outlines(axis, boxes, colour, width=1.0)
    if area is None:
        _to_scale(axis)
    else:
        axis.set_xlim(-area.y[1], -area.y[0])
        axis.set_ylim(*area.x)
        axis.set_aspect("equal", adjustable="box")


def outlines(axis: "Axes", boxes: Array, colour: str, *, width: float = 0.8) -> None:
    """The boxes from above, each with a stroke from its middle to its front."""
    for box, corner in zip(boxes, corners(boxes), strict=True):
        front = (corner[0, :2] + corner[3, :2]) / 2
        around = np.concatenate([corner[:4, :2], corner[:1, :2]])
        for path in (around, np.stack([box[:2], front])):
            axis.plot(-path[:, 1], path[:, 0], color=colour, linewidth=width)


def _to_scale(axis: "Axes") -> None:
    axis.set_aspect("equal", adjustable="datalim")


def backdrop(
    axis: "Axes",
    points: Array,
    projection: Array,
    image: Image.Image | None,
    size: tuple[int, int],
) -> None:
    """The camera's image, or where there is none the points in its frame of `size` (width,
    height), near ones dark.
    """
    width, height = size
    if image is not None:
        axis.imshow(np.asarray(image.convert("RGB")), extent=(0.0, width, height, 0.0))
    else:
        pixels, depth = project(points[:, :3], projection)
        seen = depth > NEAR
        x, y = pixels[seen].T
        axis.scatter(x, y, s=0.4, c=depth[seen], cmap="Greys_r", vmin=0, vmax=70, linewidths=0)
    axis.set_xlim(0, width)
    axis.set_ylim(height, 0)
    axis.set_aspect("equal")


def in_image(axis: "Axes", boxes: Array, projection: Array, colour: str) -> None:
    """The boxes' edges by `projection` [3, 4], cut where they come too near the camera."""
    for corner in corners(boxes):
        depths = project(corner, projection)[1]
        for a, b in EDGES:
            ends = corner[[a, b]]
            depth = depths[[a, b]]
            if depth.max() <= NEAR:
                continue
            if depth.min() < NEAR:  # depth is linear along an edge
                low = int(depth.argmin())
                part = (NEAR - depth[low]) / (depth[1 - low] - depth[low])
                ends[low] += part * (ends[1 - low] - ends[low])
            pixels = project(ends, projection)[0]
            axis.plot(pixels[:, 0], pixels[:, 1], color=colour, linewidth=0.8)


def found_in_image(axis: "Axes", found: Found, projection: Array) -> None:
    """What is found, each box in its class's colour."""
    for label, colour in enumerate(COLOURS):
        boxes = found.boxes[found.labels == label].double().numpy()
        in_image(axis, boxes, projection, colour)


def _image(batch: Tensors, row: int) -> Image.Image | None:
    if CAMERA_IMAGE not in batch:
        return None
    file = row_of(batch, CAMERA_IMAGE, row).cpu().numpy().tobytes()
    return read_image(file, f"image of cloud {row}", annotated=True) if file else None


def _predicted(
    models: Models, lines: Mapping[str, str], batch: Tensors, picking: Picking
) -> dict[str, list[Found]]:
    rows: dict[str, list[Found]] = {}
    for line, role in lines.items():
        module: nn.Module = named(models, role, what="role", where="figure")
        device = next(module.parameters()).device
        finder = detector(models, role)
        with torch.no_grad():
            outputs = finder({name: value.to(device) for name, value in batch.items()})
        rows[line] = finder.boxes(outputs, picking)
    return rows


def _first(data: Data, count: int, seed: int | None) -> Tensors:
    rng = None if seed is None else Generator().manual_seed(seed)
    return next(iter(data.batches(count, rng=rng)))


def _clouds(batch: Tensors) -> int:
    return len(batch["points_offsets"]) - 1


def _part(batch: Tensors, name: str, row: int) -> Array:
    return row_of(batch, name, row).double().cpu().numpy()


def _page(
    rows: Mapping[str, Sequence[object]], columns: int, size: tuple[float, float]
) -> "tuple[Figure, NDArray[np.object_]]":
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    figure = Figure(figsize=(size[0] * columns, size[1] * len(rows)), layout="constrained")
    return figure, figure.subplots(len(rows), columns, squeeze=False)


def _bare(axis: "Axes") -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def legend(figure: "Figure", *, truth: bool = True) -> None:
    """What the colours of boxes mean, below a figure."""
    from matplotlib.lines import Line2D

    kinds = {"truth": TRUTH} if truth else {}
    kinds |= dict(zip(CLASSES, COLOURS, strict=True))
    lines = [Line2D([], [], color=colour, label=name) for name, colour in kinds.items()]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines), fontsize=8)
