"""A picture of who listens to whom."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillhouse.data.data import Data
from stillhouse.federated.metrics import exchange_of
from stillhouse.objectives.objective import Models

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# above this many clients the numbers in the cells cannot be read
NUMBERED = 12
# a cell darker than this takes white ink
DARK = 0.5


@dataclass(frozen=True, kw_only=True)
class FusionWeights:
    """The weights of the last round as a matrix: row n is what client n's teacher is made of."""

    name: str = "weights"
    exchange: str = "exchange"

    def __call__(self, models: Models, data: Data) -> "Figure":  # noqa: ARG002
        from matplotlib.figure import Figure  # not pyplot: no global state, no window

        weights = exchange_of(models, self.exchange).weights[-1].cpu()
        count = len(weights)
        figure = Figure(figsize=(5.4, 4.6), layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(weights.numpy(), cmap="Blues", vmin=0, vmax=1)
        axes.set(xticks=range(count), yticks=range(count), xlabel="knowledge of", ylabel="client")
        if count <= NUMBERED:
            for n, row in enumerate(weights.tolist()):
                for m, weight in enumerate(row):
                    ink = "white" if weight > DARK else "black"
                    axes.text(m, n, f"{weight:.2f}", ha="center", va="center", color=ink, size=7)
        figure.colorbar(shown, label="weight")
        return figure
