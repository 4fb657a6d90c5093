"""Rules: whom each client listens to. KnFu, and the controls it must be compared with.

N: clients. M: samples of the transfer set. C: classes.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.federated.fusion import (
    Distance,
    check_distance,
    divergence,
    estimated_distribution,
    fusion_weights,
)
from stillhouse.objectives.inputs import fraction, not_negative


@runtime_checkable
class Rule(Protocol):
    """Fusion weights [N, N] from the clients' predictions at temperature 1 and the labels of the
    transfer set; a frozen dataclass.
    """

    @property
    def shares(self) -> bool:
        """Whether clients need each other's predictions, so that arrays travel at all."""
        ...

    def __call__(
        self, probabilities: Float[Tensor, "N M C"], labels: Integer[Tensor, " M"] | None
    ) -> Float[Tensor, "N N"]: ...


@dataclass(frozen=True, kw_only=True)
class KnFu:
    """Weights by the distance of estimated label distributions (a reconstruction, see fusion.py).

    `labelled` False estimates without the transfer set's labels, which fails where clients have few
    samples; a transfer set without labels does the same.
    """

    beta: float = 10.0
    distance: Distance = "kl"
    min_weight: float = 0.0
    labelled: bool = True

    def __post_init__(self) -> None:
        check_distance(self.distance)
        not_negative("beta", self.beta)
        fraction("min_weight", self.min_weight)

    @property
    def shares(self) -> bool:
        return True

    def __call__(
        self, probabilities: Float[Tensor, "N M C"], labels: Integer[Tensor, " M"] | None
    ) -> Float[Tensor, "N N"]:
        known = labels if self.labelled else None
        p = torch.stack([estimated_distribution(client, known) for client in probabilities])
        return fusion_weights(
            divergence(p, self.distance), beta=self.beta, min_weight=self.min_weight
        )


@dataclass(frozen=True, kw_only=True)
class Mean:
    """Every client alike: FedMD (Li and Wang 2019, arXiv 1910.03581), the mean of all predictions.

    Differs: FedMD averages logits and fits them with an L1 loss; here probabilities are averaged
    and fitted as in KnFu, so that only the weights differ between the rows of a report.
    """

    @property
    def shares(self) -> bool:
        return True

    def __call__(
        self,
        probabilities: Float[Tensor, "N M C"],
        labels: Integer[Tensor, " M"] | None,
    ) -> Float[Tensor, "N N"]:
        count = len(probabilities)
        return torch.full((count, count), 1 / count)


@dataclass(frozen=True, kw_only=True)
class Itself:
    """Each client is its own teacher: the control without which a gain says nothing about fusion.

    KnFu tends to it where all label distributions differ. Nothing would have to travel.
    """

    @property
    def shares(self) -> bool:
        return False

    def __call__(
        self,
        probabilities: Float[Tensor, "N M C"],
        labels: Integer[Tensor, " M"] | None,
    ) -> Float[Tensor, "N N"]:
        return torch.eye(len(probabilities))
