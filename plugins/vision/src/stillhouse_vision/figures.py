"""Pictures of what the models say."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor

from stillhouse.batching import each_batch
from stillhouse.data.data import Data, TensorData
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RIGHT, WRONG = "#1a7f37", "#c4432b"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A grid of test pictures drawn by `seed`, with the truth above and what each role says below
    each.

    `names` are the classes' names; without them classes are numbers.
    """

    name: str = "predictions"
    roles: tuple[str, ...] = ("teacher", "student")
    names: tuple[str, ...] = ()
    columns: int = 8
    rows: int = 3
    seed: int = 0

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        from matplotlib.figure import Figure  # not pyplot: no global state, no window

        rng = Generator().manual_seed(self.seed)
        batch = next(iter(data.batches(self.columns * self.rows, rng=rng)))
        device = next(models[self.roles[0]].parameters()).device
        images = batch["images"]

        def classes(rows: Tensors) -> Tensor:
            shown = {"images": rows["images"].to(device)}
            return torch.stack([models[role](shown)["logits"].argmax(1) for role in self.roles])

        shown = TensorData({"images": images})
        found = torch.cat(list(each_batch(shown, classes, most=len(images), device=device)), dim=1)
        predicted = dict(zip(self.roles, found.tolist(), strict=True))
        figure = Figure(figsize=(1.35 * self.columns, 1.9 * self.rows), layout="constrained")
        axes = figure.subplots(self.rows, self.columns, squeeze=False).flatten()
        for place, axis in enumerate(axes):
            axis.set_axis_off()
            if place < len(images):
                self._show(
                    axis,
                    images[place],
                    int(batch["labels"][place]),
                    {r: predicted[r][place] for r in self.roles},
                )
        return figure

    def _show(self, axis: "Axes", picture: Tensor, truth: int, predicted: dict[str, int]) -> None:
        pixels = (
            picture if picture.dtype == torch.uint8 else (picture * 255).round().to(torch.uint8)
        )
        axis.imshow(pixels.expand(3, -1, -1).permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(self._name(truth), fontsize=9)
        for line, (role, number) in enumerate(predicted.items()):
            colour = RIGHT if number == truth else WRONG
            text = f"{role}: {self._name(number)}"
            axis.text(
                0.5,
                -0.04 - 0.14 * line,
                text,
                color=colour,
                fontsize=7,
                ha="center",
                va="top",
                transform=axis.transAxes,
            )

    def _name(self, number: int) -> str:
        return self.names[number] if self.names else str(number)
