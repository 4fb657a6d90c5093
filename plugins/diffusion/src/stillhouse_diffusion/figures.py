"""Grids of samples: every model from the same noise, students' images in the colour of a part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stillhouse.data.data import Data, RowData
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_diffusion.metrics import Samples
from stillhouse_diffusion.sampling import RoutedStudents

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# of parts of the labels, in turn; distinct in the common colour blindnesses (Okabe and Ito)
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")


@dataclass(frozen=True, kw_only=True)
class SampleGrid:
    """The first `columns` conditions of the data, a line a model, each column one noise and label.

    `lines` maps what a line is called to its role. Images of a student have a frame in the colour
    of the part of the labels that it owns.
    """

    lines: Mapping[str, str]
    name: str = "samples"
    columns: int = 10

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        from matplotlib.figure import Figure  # not pyplot: no global state, no window

        assert isinstance(data, RowData)
        batch = data.rows(torch.arange(min(self.columns, len(data))))
        given = {name: batch[name].to(work.device) for name in ("noise", "labels")}
        columns, labels = len(batch["labels"]), batch["labels"].tolist()
        margin = 0.3 + 0.065 * max(map(len, self.lines))  # inches, for the titles
        width, height = margin + 0.8 * columns, 0.85 * len(self.lines) + 0.3
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(left=margin / width, right=0.995, bottom=0.01, top=1 - 0.25 / height)
        axes = figure.subplots(len(self.lines), columns, squeeze=False)
        for row, (line, role) in enumerate(self.lines.items()):
            module = models[role]
            with torch.no_grad():
                images = module(given)["images"].float().cpu()
            owner = module.owner.tolist() if isinstance(module, RoutedStudents) else []
            for place, label in enumerate(labels):
                _show(axes[row, place], images[place], owner[label] if owner else None)
                if row == 0:
                    axes[row, place].set_title(str(label), fontsize=8, pad=3)
            axes[row, 0].set_ylabel(line, fontsize=8, rotation=0, ha="right", va="center")
        return figure


def _show(axis: "Axes", image: Tensor, part: int | None) -> None:
    pixels = ((image + 1) / 2).clamp(0, 1)
    shown = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels[:3]
    axis.imshow(shown.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(part is not None)
        if part is not None:
            spine.set_color(COLOURS[part % len(COLOURS)])
            spine.set_linewidth(2)


@dataclass(frozen=True, kw_only=True)
class PlaneGrid:
    """Points of a plane, a panel a model; points in the colour of the student that made them, the
    teacher's in that of their class.
    """

    lines: Mapping[str, str]
    name: str = "points"
    reach: float = 0.75
    most: int = 4000

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        from matplotlib.figure import Figure

        count = len(self.lines)
        figure = Figure(figsize=(2.4 * min(count, 4), 2.6 * -(-count // 4)), layout="constrained")
        axes = figure.subplots(-(-count // 4), min(count, 4), squeeze=False).ravel()
        for axis, (line, role) in zip(axes, self.lines.items(), strict=False):
            made = Samples(role=role, size=10_000)(models, data, work)
            points, labels = (made[name][: self.most] for name in ("images", "labels"))
            module = models[role]
            parts = module.owner.cpu()[labels] if isinstance(module, RoutedStudents) else labels
            colours = [COLOURS[part % len(COLOURS)] for part in parts.tolist()]
            axis.scatter(*points.flatten(1).T.numpy(), s=0.4, c=colours, linewidths=0)
            axis.set_title(line, fontsize=8)
            axis.set_xlim(-self.reach, self.reach)
            axis.set_ylim(-self.reach, self.reach)
            axis.set_aspect("equal")
        for axis in axes:
            axis.set_xticks([])
            axis.set_yticks([])
        for axis in axes[count:]:
            axis.set_visible(False)
        return figure
