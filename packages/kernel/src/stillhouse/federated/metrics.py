"""Metrics of federated runs: ALMA, balanced accuracy, neighbours, bytes.

N: clients. K: test samples. C: classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from stillhouse.batching import each_batch
from stillhouse.data.data import Data
from stillhouse.errors import BadData
from stillhouse.federated.fusion import effective_neighbours
from stillhouse.federated.server import Exchange
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import FRACTION, Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models, Tensors
from stillhouse.work import Work

MIB = 2**20


def personal_accuracy(
    right: Bool[Tensor, "N K"], weights: Float[Tensor, "K N"]
) -> Float[Tensor, " N"]:
    """Each client's accuracy on its own label distribution: the weighted share of right answers.

    `weights` as `personal_weights` makes them, or 0 and 1 for a client's own test rows; each column
    needs a positive sum. ALMA (arXiv 2403.11892) is the mean over the clients.
    """
    sums = weights.sum(dim=0)
    if not bool((weights >= 0).all()) or not bool((sums > 0).all()):
        raise BadData("weights of the test rows must be >= 0, and > 0 somewhere for each client")
    return (right.T * weights).sum(dim=0) / sums


def balanced_accuracy(
    right: Bool[Tensor, "N K"], labels: Integer[Tensor, " K"]
) -> Float[Tensor, " N"]:
    """Each client's accuracy by class, mean over the classes that the test set has."""
    if len(labels) == 0:
        raise BadData("the evaluation data hold no sample")
    classes = [right[:, labels == c].float().mean(dim=1) for c in labels.unique()]
    return torch.stack(classes).mean(dim=0)


@dataclass(frozen=True, kw_only=True)
class FederatedAccuracy(Metric):
    """Scores of `clients` ("logits") on one test set with "labels" [K] and `weights` [K, N].

    alma_accuracy: mean over the clients of `personal_accuracy`. global_accuracy: mean over the
    clients of `balanced_accuracy`. The two trade off: a client that only knows its own classes is
    good at the first and bad at the second. `batch` is only the most rows that are
    computed at a time.
    """

    clients: tuple[str, ...]
    weights: str = "weights"
    batch: int = 250

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:

        def outputs(batch: Tensors) -> tuple[Tensor, Tensor, Tensor]:
            weights = named(batch, self.weights, what="column", where="test data")
            right = torch.stack([self._right(models, name, batch) for name in self.clients])
            return right, weights, batch["labels"]

        rows = list(each_batch(data, outputs, most=self.batch, device=work.device))
        if not rows:
            raise BadData("the evaluation data hold no sample")
        right, weights, labels = zip(*rows, strict=True)
        answers, shares = torch.cat(right, dim=1), torch.cat(weights)
        if shares.shape[1:] != (len(self.clients),):
            raise BadData(
                f"column '{self.weights}' must have {len(self.clients)} values a row, "
                f"one a client (got {list(shares.shape[1:])})"
            )
        return {
            "alma_accuracy": float(personal_accuracy(answers, shares).mean()),
            "global_accuracy": float(balanced_accuracy(answers, torch.cat(labels)).mean()),
        }

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="alma_accuracy", better="higher", unit=FRACTION, label="ALMA"),
            Score(name="global_accuracy", better="higher", unit=FRACTION),
        )

    def _right(self, models: Models, name: str, batch: Mapping[str, Tensor]) -> Tensor:
        module = named(models, name, what="client", where="federated accuracy")
        device = next(module.parameters()).device
        moved = {key: value.to(device) for key, value in batch.items()}
        return module(moved)["logits"].argmax(1).cpu() == batch["labels"]


@dataclass(frozen=True, kw_only=True)
class ExchangeScores(Metric):
    """Of the role `exchange`: effective_neighbours and self_weight of the last round (means over
    the clients that took part), sent_mib: what all clients sent up and down in all rounds, in MiB.
    """

    exchange: str = "exchange"

    def __call__(self, models: Models, data: Data, *, work: Work) -> Mapping[str, float]:
        found = exchange_of(models, self.exchange)
        last, here = found.weights[-1], ~found.missing[-1]
        return {
            "effective_neighbours": float(effective_neighbours(last[here]).mean()),
            "self_weight": float(last.diagonal()[here].mean()),
            "sent_mib": int(found.sent.sum()) / MIB,
        }

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="effective_neighbours", better="neither"),
            Score(name="self_weight", better="neither"),
            Score(name="sent_mib", better="lower", unit="MiB", label="Sent", cost=True),
        )


def exchange_of(models: Models, role: str) -> Exchange:
    """The exchange among the roles; raises UnknownName or BadData where there is none."""
    found = named(models, role, what="role", where="exchange")
    if not isinstance(found, Exchange):
        raise BadData(f"role '{role}' is no exchange of a Federate stage")
    return found
