"""Figures of masks on photos, and the curve of mIoU by clicks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from stillhouse.data.data import Data, RowData
from stillhouse.errors import BadData, BadSetting
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work
from stillhouse_sam.annotated import Annotation, allowed, annotations, credit_of, segments
from stillhouse_sam.confidence import confident
from stillhouse_sam.drawing import by_area, colours, painted, resized, scaled, sides
from stillhouse_sam.everything import EverythingSettings, Record
from stillhouse_sam.everything_metrics import MODES, photos_of
from stillhouse_sam.formats import decoded
from stillhouse_sam.metrics import click_ious, truth_of
from stillhouse_sam.objectives import mask_iou
from stillhouse_sam.prompting import on_device, predict_from_boxes, sam_of, threshold_of

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from segment_anything.modeling import Sam

SIDE = 320  # pixels of a drawn photo's longer side
TRUTH = "truth"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A drawn photo [h, w, 3], what stands above it, and points (x, y) on it in 0 ... 1."""

    drawn: "NDArray[np.uint8]"
    title: str = ""
    points: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Masks:
    """`columns` photos drawn by `seed` with their true masks, and below a line a model: its masks,
    each prompted by its true box and in the truth's colour, with their mean IoU.

    `lines` maps what a line is called to its role. Only photos of a licence in `licences` or
    without one are shown (None: any); whose they are stands below.
    """

    lines: Mapping[str, str]
    name: str = "masks"
    columns: int = 6
    seed: int = 0
    licences: tuple[int | str, ...] | None = None

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        known = annotations(data)
        assert isinstance(data, RowData)  # no other has annotations
        index = self._chosen(known, data)
        batch = data.rows(index)
        rows = {TRUTH: _true(batch)}
        for line, role in self.lines.items():
            rows[line] = _answered(named(models, role, what="role", where="masks"), batch)
        return _page(rows, [credit_of(known[row]) for row in index.tolist()])

    def _chosen(self, known: Sequence[Annotation], data: RowData) -> Tensor:
        """The rows of photos that have an object and may be shown."""
        valid = named(data.columns, "mask_valid", what="column", where="masks")
        assert isinstance(valid, Tensor)
        fits = [
            row
            for row, image in enumerate(known)
            if allowed(image, self.licences) and bool(valid[row].any())
        ]
        if not fits:
            raise BadData(
                f"masks: no photo with an object has a licence in {self.licences}; allow another"
            )
        order = torch.randperm(len(fits), generator=Generator().manual_seed(self.seed))
        return torch.tensor(fits)[order[: self.columns]]


def _true(batch: Tensors) -> list[Panel]:
    masks, valid, _ = truth_of(batch)
    return [_over(batch, row, masks[row][valid[row]].float()) for row in range(len(masks))]


def _answered(module: nn.Module, batch: Tensors) -> list[Panel]:
    """A model's masks of each photo by their true boxes."""
    masks, valid, real = truth_of(batch)
    panels: list[Panel] = []
    for row in range(len(masks)):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        boxes = one["boxes"][0, valid[row]]
        prompts = on_device({**one, "rows": torch.zeros(len(boxes)).long(), "boxes": boxes}, module)
        with torch.no_grad():
            logits = predict_from_boxes(module, prompts, prompts["rows"], prompts["boxes"])[0].cpu()
        above = logits - threshold_of(module)
        iou = mask_iou((above > 0) & real[row], masks[row][valid[row]]).mean().item()
        panels.append(_over(batch, row, above.sigmoid(), title=f"IoU {iou:.2f}"))
    return panels


def _over(batch: Tensors, row: int, inside: Tensor, *, title: str = "") -> Panel:
    """A photo of the batch with masks [K, L, L], given as how sure a cell is inside, in 0 ... 1."""
    height, width = batch["sizes"][row].tolist()
    frame, size = batch["images"].shape[-1], sides(height, width, SIDE)
    photo = batch["images"][row, :, :height, :width].permute(1, 2, 0).numpy()
    whole = functional.interpolate(inside[:, None], (frame, frame), mode="bilinear")[:, 0]
    masks = scaled(whole[:, :height, :width], size)
    drawn = painted(resized(photo, size), masks, colours(len(masks)))
    return Panel(drawn=drawn, title=title)


@dataclass(frozen=True, kw_only=True)
class Clicks:
    """mIoU over all objects after 1 ... `clicks` clicks, a curve a whole SAM; see `ClickIou`.

    `lines` maps what a curve is called to its role. Curves of the roles `dashed` are.
    """

    lines: Mapping[str, str]
    dashed: tuple[str, ...] = ()
    name: str = "clicks"
    clicks: int = 9

    def __post_init__(self) -> None:
        if self.clicks < 1:
            raise BadSetting(f"clicks must be >= 1 (got {self.clicks})")

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        from matplotlib.figure import Figure  # not pyplot: no global state, no window

        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axis, counts = figure.add_subplot(), range(1, self.clicks + 1)
        for line, role in self.lines.items():
            found = 100 * click_ious(models, data, role=role, clicks=self.clicks).mean(0)
            style = "--" if role in self.dashed else "-"
            axis.plot(list(counts), found.tolist(), f"o{style}", markersize=3, label=line)
        axis.set_xticks(list(counts))
        axis.set_xlabel("clicks")
        axis.set_ylabel("mIoU, %")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        return figure


@dataclass(frozen=True, kw_only=True)
class EverythingMasks:
    """The first `columns` photos with all their true segments, and two rows a whole SAM: all masks
    of its grid, and of two rounds, with the points that were decoded, how many they are, and how
    many masks were kept. A mask's colour shows where it lies.

    `lines` maps what a line is called to its role. `licences` as of `Masks`,
    `confidence` as of `Everything`.
    """

    lines: Mapping[str, str]
    settings: EverythingSettings
    name: str = "everything"
    columns: int = 4
    licences: tuple[int | str, ...] | None = None
    confidence: str | None = None

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        settings = confident(self.settings, models, self.confidence)
        fits = (pair for pair in photos_of(data) if allowed(pair[1], self.licences))
        pairs = list(islice(fits, self.columns))
        if not pairs:
            raise BadData(f"everything: no photo has a licence in {self.licences}; allow another")
        rows = {TRUTH: [_everything(photo, _segments(image)) for photo, image in pairs]}
        for line, role in self.lines.items():
            sam = sam_of(models, role, where="everything")
            for mode in MODES:
                rows[f"{line}, {mode}"] = [
                    _generated(sam, photo, settings, mode) for photo, _ in pairs
                ]
        return _page(rows, [credit_of(image) for _, image in pairs])


def _generated(
    sam: "Sam", photo: "NDArray[np.uint8]", settings: EverythingSettings, mode: str
) -> Panel:
    """A photo with all masks of a mode, and the points that were decoded."""
    seen = list[Tensor]()
    generator = settings.grid(sam) if mode == "grid" else settings.hierarchical(sam)

    # Any: the prompt encoder's keyword arguments
    def see(_: nn.Module, __: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        seen.append(kwargs["points"][0][:, 0].cpu())

    hook = sam.prompt_encoder.register_forward_pre_hook(see, with_kwargs=True)
    try:
        with torch.no_grad():
            records: list[Record] = generator.generate(photo)
    finally:
        hook.remove()
    frame = sides(photo.shape[0], photo.shape[1], sam.image_encoder.img_size)
    points = torch.cat(seen) / torch.tensor(frame[::-1])
    title = f"{len(records)} masks, {len(points)} points"
    found = [record["segmentation"] for record in by_area(records)]
    return _everything(photo, found, title=title, points=points)


def _segments(image: Annotation) -> list[Any]:
    """Run lengths of the true segments, large ones first."""
    return [thing["rle"] for thing in by_area(segments(image))]


def _everything(
    photo: "NDArray[np.uint8]",
    rles: Sequence[Any],  # Any: COCO's run lengths
    *,
    title: str = "",
    points: Tensor | None = None,
) -> Panel:
    """A photo with all masks, each coloured by its place."""
    size = sides(photo.shape[0], photo.shape[1], SIDE)
    masks = (scaled(torch.from_numpy(decoded(rle))[None], size)[0] for rle in rles)
    return Panel(drawn=painted(resized(photo, size), masks), title=title, points=points)


def _page(rows: Mapping[str, Sequence[Panel]], below: Sequence[str]) -> "Figure":
    """A line of photos a row; below the last one whose they are."""
    from matplotlib.figure import Figure

    columns = len(below)
    figure = Figure(figsize=(1.9 * columns + 0.3, 2.0 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, panels, across in zip(rows, rows.values(), axes, strict=True):
        across[0].set_ylabel(line, fontsize=7)
        for axis, panel in zip(across, panels, strict=True):
            _show(axis, panel)
    credit = [f"{place}: {text}" for place, text in enumerate(below, 1) if text]
    if credit:
        figure.supxlabel("\n".join(credit), fontsize=5, x=0.01, ha="left")
    return figure


def _show(axis: "Axes", panel: Panel) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    height, width = panel.drawn.shape[:2]
    axis.imshow(panel.drawn, extent=(0, width, height, 0), interpolation="bilinear")
    axis.set_title(panel.title, fontsize=6, pad=2)
    if panel.points is not None:
        x, y = panel.points.unbind(1)
        axis.plot((x * width).tolist(), (y * height).tolist(), "w.", markersize=0.8)
