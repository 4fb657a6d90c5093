"""The server: it sees predictions on the transfer set and their public labels, and nothing else.

N: clients. M: samples of the transfer set. C: classes. R: rounds.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from stillhouse.errors import ClientLost, ContractError
from stillhouse.federated.clients import ClientProxy
from stillhouse.federated.fusion import fuse
from stillhouse.federated.rules import Rule
from stillhouse.objectives.objective import Tensors


@dataclass(frozen=True, kw_only=True)
class Server:
    """What the server knows before any client speaks."""

    rule: Rule
    temperature: float
    samples: int
    classes: int
    labels: Integer[Tensor, " M"] | None

    def teach(
        self, knowledge: Float[Tensor, "N M C"]
    ) -> tuple[Float[Tensor, "N M C"], Float[Tensor, "N N"]]:
        """Fused probabilities at the temperature, and the weights they were fused with.

        `knowledge` are log-probabilities at temperature 1: softmax(knowledge / T) is exactly the
        softmax of the logits at T, so one array serves the estimate (T = 1) and the fusion.
        """
        weights = self.rule(knowledge.exp(), self.labels)
        return fuse(torch.softmax(knowledge / self.temperature, dim=2), weights), weights

    def round(
        self, number: int, names: Sequence[str], clients: Sequence[ClientProxy]
    ) -> tuple[Float[Tensor, "N N"], Integer[Tensor, "N 2"]]:
        """Collect from every client, fuse, hand back; the weights, and the bytes sent up and down
        by each client (0 where the rule shares nothing).

        A client that raises ClientLost has row and column 0, and the others' teachers are made
        without it; one that is lost before it absorbs has still taught. Raises ContractError for
        anything but finite numbers [M, C] from a client, ClientLost when all are lost.
        """
        answers: dict[int, Tensor] = {}
        for place, (name, client) in enumerate(zip(names, clients, strict=True)):
            with contextlib.suppress(ClientLost):
                answers[place] = self.checked(name, client.knowledge())
        if not answers:
            raise ClientLost(f"round {number + 1}: no client has answered ({', '.join(names)})")
        knowledge = torch.stack(list(answers.values()))
        fused, found = self.teach(knowledge)
        sent = torch.zeros(len(clients), 2, dtype=torch.int64)
        for row, place in enumerate(answers):
            with contextlib.suppress(ClientLost):
                clients[place].absorb(number, fused[row])
            if self.rule.shares:
                sent[place, 0], sent[place, 1] = knowledge[row].nbytes, fused[row].nbytes
        return among(found, list(answers), len(clients)), sent

    def checked(self, name: str, given: Tensor) -> Float[Tensor, "M C"]:
        """A copy of what a client sent, without graph or further storage behind it."""
        shape = (self.samples, self.classes)
        if given.shape != shape or given.dtype != torch.float32 or not given.isfinite().all():
            kind = str(given.dtype).removeprefix("torch.")
            raise ContractError(
                f"client '{name}': only finite float32 {list(shape)} (transfer set x classes) may "
                f"leave it (got {kind} {list(given.shape)})"
            )
        return given.detach().clone()


def among(weights: Float[Tensor, "P P"], here: Sequence[int], clients: int) -> Float[Tensor, "N N"]:
    """The weights of the clients that were `here`, among all: 0 for those who were missing."""
    rows = torch.tensor(here, dtype=torch.int64)
    found = torch.zeros(clients, clients)
    found[rows[:, None], rows] = weights
    return found


class Exchange(nn.Module):
    """What went between clients and server: `weights` [R, N, N] and `sent` [R, N, 2] (bytes up and
    down). A role, so that metrics and figures get it beside the clients. A client that was missing
    in a round has a row and a column of zeros there: nobody else has, for each listens to itself.
    """

    weights: Tensor
    sent: Tensor

    def __init__(self, rounds: int, clients: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.zeros(rounds, clients, clients))
        self.register_buffer("sent", torch.zeros(rounds, clients, 2, dtype=torch.int64))

    def forward(self, batch: Tensors) -> Tensors:
        return {"weights": self.weights, "sent": self.sent}

    @property
    def missing(self) -> Bool[Tensor, "R N"]:
        """Who was missing in which round; also true of rounds that have not been played."""
        return (self.weights == 0).all(dim=2)

    def note(
        self, number: int, weights: Float[Tensor, "N N"], sent: Integer[Tensor, "N 2"]
    ) -> None:
        """Write down round `number`."""
        self.weights[number], self.sent[number] = weights, sent
