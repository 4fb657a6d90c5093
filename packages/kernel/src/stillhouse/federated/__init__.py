"""Federated distillation: clients keep their data and models, predictions are what they share."""

from stillhouse.federated.averaging import FedAvg, weighted_mean
from stillhouse.federated.clients import Client, ClientProxy, Plan, fused_loss
from stillhouse.federated.figures import ClientLabels, FusionWeights
from stillhouse.federated.fusion import (
    divergence,
    effective_neighbours,
    estimated_distribution,
    fuse,
    fusion_weights,
)
from stillhouse.federated.metrics import (
    ExchangeScores,
    FederatedAccuracy,
    balanced_accuracy,
    personal_accuracy,
)
from stillhouse.federated.rules import Itself, KnFu, Mean, Rule
from stillhouse.federated.server import Exchange, Server
from stillhouse.federated.splits import (
    dirichlet_split,
    grouped_split,
    label_distribution,
    personal_weights,
)
from stillhouse.federated.stage import Federate

__all__ = [
    "Client", "ClientLabels", "Exchange", "ExchangeScores", "FedAvg", "Federate",
    "FederatedAccuracy", "FusionWeights", "Itself", "KnFu", "Mean", "ClientProxy", "Plan",
    "Rule", "Server", "balanced_accuracy", "dirichlet_split", "divergence", "effective_neighbours",
    "estimated_distribution", "fuse", "fused_loss", "fusion_weights", "grouped_split",
    "label_distribution", "personal_accuracy", "personal_weights", "weighted_mean",
]  # fmt: skip
