"""Figures of the fusion weights, and of the labels of each client."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from stillhouse.data.data import Data
from stillhouse.errors import BadData
from stillhouse.federated.metrics import exchange_of
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models
from stillhouse.work import Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# above this many clients the numbers in the cells cannot be read
NUMBERED = 12
# a cell darker than this takes white ink
DARK = 0.5
ROWS = 250  # of the test data, images and all, that are read at a time


@dataclass(frozen=True, kw_only=True)
class FusionWeights:
    """The weights of the last round as a matrix: row n is what client n's teacher is made of."""

    name: str = "weights"
    exchange: str = "exchange"

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        weights = exchange_of(models, self.exchange).weights[-1].cpu()
        return _matrix(weights, across="knowledge of", label="weight")


@dataclass(frozen=True, kw_only=True)
class ClientLabels:
    """The label distributions that test rows are weighed by (column `weights` [K, N], see
    `personal_weights`) as a matrix: row n is the share of each class at client n.
    """

    name: str = "labels"
    weights: str = "weights"

    def __call__(self, models: Models, data: Data, *, work: Work) -> "Figure":
        if len(data) == 0:
            raise BadData("the evaluation data hold no sample")
        rows = [
            (batch["labels"], named(batch, self.weights, what="column", where="test data"))
            for batch in data.batches(ROWS, rng=None)
        ]
        labels, weights = (torch.cat(column) for column in zip(*rows, strict=True))
        weights = weights.float()
        shares = weights.new_zeros(int(labels.max()) + 1, weights.shape[1])
        return _matrix(shares.index_add(0, labels, weights).T, across="class", label="share")


def _matrix(values: Float[Tensor, "rows columns"], *, across: str, label: str) -> "Figure":
    """Numbers in [0, 1] as shades, a client a row."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no window

    rows, columns = values.shape
    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(values.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set(xticks=range(columns), yticks=range(rows), xlabel=across, ylabel="client")
    if max(rows, columns) <= NUMBERED:
        for row, line in enumerate(values.tolist()):
            for column, value in enumerate(line):
                ink = "white" if value > DARK else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, size=7)
    figure.colorbar(shown, label=label)
    return figure
