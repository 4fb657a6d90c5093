"""Images with the classes that a student finds likeliest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from stillhouse.data.data import Data
from stillhouse.objectives.objective import Models
from stillhouse.work import Work
from stillhouse_clip.scores import zero_shot_model

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, OTHER = "#2a9d54", "#8a8f98"
LONGEST = 18  # letters of a class name


@dataclass(frozen=True, kw_only=True)
class TopFive:
    """`images` unseen images drawn by `seed`, each beside its five likeliest classes among all and
    their probabilities; the true one green, and below the image where it is not among them.
    """

    role: str = "student"
    name: str = "top-five"
    images: int = 12
    seed: int = 0

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        model = zero_shot_model(models, self.role)
        batch = next(iter(data.batches(self.images, rng=Generator().manual_seed(self.seed))))
        device = next(model.parameters()).device
        with torch.no_grad():
            logits = model({"images": batch["images"].to(device)})["logits"].float().cpu()
        found, classes = logits.softmax(1).topk(min(5, logits.shape[1]), dim=1)
        truths = [model.names[label + model.known] for label in batch["labels"].tolist()]
        chosen = [[model.names[place] for place in row] for row in classes.tolist()]
        return beside_bars(batch["images"], truths, chosen, found)


def beside_bars(
    images: Tensor, truths: Sequence[str], chosen: Sequence[Sequence[str]], values: Tensor
) -> "Figure":
    """Images [N, 3, H, W], each called as in `truths`, beside bars of its `chosen` classes and
    their `values` [N, K] from 0 to 1; the true class is green.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    rows = -(-len(images) // 3)
    figure = Figure(figsize=(11, 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 6, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, truth in enumerate(truths):
        image, chart = axes[number // 3, 2 * (number % 3) : 2 * (number % 3) + 2]
        _show(image, images[number], truth)
        _bars(chart, list(chosen[number]), values[number], truth)
    return figure


def _show(axis: "Axes", image: Tensor, name: str) -> None:
    pixels = image if image.dtype == torch.uint8 else (image * 255).round().byte()
    axis.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_title(_short(name), fontsize=8, color=RIGHT)


def _bars(axis: "Axes", names: list[str], found: Tensor, truth: str) -> None:
    colours = [RIGHT if name == truth else OTHER for name in names]
    places = list(range(len(names)))
    axis.barh(places, found.tolist(), color=colours, height=0.25)
    for place, name, value in zip(places, names, found.tolist(), strict=True):
        axis.text(0, place - 0.2, f"{_short(name)}  {100 * value:.0f} %", fontsize=7, va="bottom")
    axis.set_xlim(0, 1)
    axis.set_ylim(len(names) - 0.5, -1)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
