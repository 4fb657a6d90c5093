"""Figures of points on faces, and curves of their errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from stillhouse.data.data import Data
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_landmarks.metrics import LIMIT, Normalizer, as_points, auc, ced, face_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUTH, PREDICTED = "#3ddc84", "#ff4d6d"


@dataclass(frozen=True, kw_only=True)
class Faces:
    """`columns` faces drawn by `seed`, a line a model below the truth: true points green, the
    model's red.

    `lines` maps what a line is called to its role.
    """

    lines: Mapping[str, str]
    name: str = "faces"
    columns: int = 8
    seed: int = 0

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        from matplotlib.figure import Figure  # not pyplot: no global state, no window

        batch = next(iter(data.batches(self.columns, rng=Generator().manual_seed(self.seed))))
        truth = as_points(batch["landmarks"])
        rows: dict[str, Tensor | None] = {"truth": None}
        with torch.no_grad():
            for line, role in self.lines.items():
                device = next(models[role].parameters()).device
                found = models[role]({"images": batch["images"].to(device)})["landmarks"]
                rows[line] = as_points(found.float().cpu())
        figure = Figure(figsize=(1.5 * self.columns, 1.6 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), self.columns, squeeze=False)
        for row, (line, points) in enumerate(rows.items()):
            for place, axis in enumerate(axes[row]):
                _bare(axis)
                if place < len(truth):
                    predicted = None if points is None else points[place]
                    _show(axis, batch["images"][place], truth[place], predicted)
            axes[row, 0].set_ylabel(line, fontsize=8)
        return figure


def _bare(axis: "Axes") -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _show(axis: "Axes", image: Tensor, truth: Tensor, predicted: Tensor | None) -> None:
    side = image.shape[-1]
    pixels = image if image.dtype == torch.uint8 else (image * 255).round().byte()
    # points are measured from the edges of the image
    extent = (0.0, float(side), float(side), 0.0)
    axis.imshow(pixels.permute(1, 2, 0).numpy(), extent=extent, interpolation="nearest")
    axis.set_xlim(0, side)
    axis.set_ylim(side, 0)
    for points, colour in ((truth, TRUTH), (predicted, PREDICTED)):
        if points is not None:
            axis.plot(*(side * points).T.numpy(), ".", color=colour, markersize=2.5)


@dataclass(frozen=True, kw_only=True)
class Ced:
    """Cumulative error curves: the part of the faces whose NME is at most x, on [0, `limit`].

    `lines` maps what a curve is called to its role; the area under it is in the legend. Curves of
    the roles `dashed` are.
    """

    lines: Mapping[str, str]
    dashed: tuple[str, ...] = ()
    name: str = "ced"
    normalizer: Normalizer = "corners"
    limit: float = LIMIT

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axis = figure.add_subplot()
        for line, role in self.lines.items():
            with torch.no_grad():
                errors = face_errors(models, data, role=role, normalizer=self.normalizer)
            thresholds, part = ced(errors, limit=self.limit)
            axis.plot(
                100 * thresholds.numpy(),
                100 * part.numpy(),
                "--" if role in self.dashed else "-",
                linewidth=1.2,
                label=f"{line}  {float(auc(errors, limit=self.limit)):.3f}",
            )
        axis.set_xlabel("NME, %")
        axis.set_ylabel("faces, %")
        axis.set_xlim(0, 100 * self.limit)
        axis.set_ylim(0, 100)
        axis.grid(alpha=0.3)
        axis.legend(title="area under the curve", fontsize=8, title_fontsize=8)
        return figure
