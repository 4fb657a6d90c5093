"""Rounds of clients: played one after the other, written down, in a checkpoint after each.

N: clients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.artifact import Built, Model, save_model
from stillhouse.checkpoint import Checkpoints, below
from stillhouse.federated.clients import Client, ClientProxy
from stillhouse.federated.fusion import effective_neighbours
from stillhouse.federated.server import Exchange
from stillhouse.recipe import Context, Event, Result

EXCHANGE = "exchange"
# what a round is: its number to the weights [N, N] of its clients and the bytes [N, 2] they sent
PlayRound = Callable[[int], tuple[Float[Tensor, "N N"], Integer[Tensor, "N 2"]]]


@dataclass(frozen=True, kw_only=True)
class Played:
    """Rounds that are over: what went between clients and server."""

    exchange: Exchange
    clients: tuple[str, ...]  # in the exchange's order
    resumed_at: int | None = None
    elsewhere: tuple[str, ...] = ()  # clients whose models stay with their nodes

    @property
    def measured(self) -> dict[str, Any]:  # Any: JSON values
        """Rounds, bytes sent, and by client the rounds that went on without it."""
        rounds, sent = len(self.exchange.weights), int(self.exchange.sent.sum())
        found: dict[str, Any] = {"rounds": rounds, "bytes_sent": sent}
        columns = zip(self.clients, self.exchange.missing.T, strict=True)
        lost = {name: (row.nonzero().flatten() + 1).tolist() for name, row in columns}
        if missing := {name: rounds for name, rounds in lost.items() if rounds}:
            found["missing"] = missing
        if self.elsewhere:
            found["elsewhere"] = list(self.elsewhere)
        return found


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """`count` rounds of a stage's `clients`. Between rounds all clients of this process are in a
    checkpoint, and a killed stage goes on from the last round to the same bits; clients elsewhere
    keep their own.
    """

    stage: str
    count: int
    clients: Mapping[str, ClientProxy]
    ctx: Context

    def play(self, play_round: PlayRound) -> Played:
        """Run the rounds that are still to be run."""
        exchange = Exchange(self.count, len(self.clients))
        first = self._resume(exchange)
        for number in range(first, self.count):
            exchange.note(number, *play_round(number))
            self._finish(number, exchange)
        return Played(
            exchange=exchange, clients=tuple(self.clients), resumed_at=first if first else None
        )

    def _finish(self, number: int, exchange: Exchange) -> None:
        done, missing = number + 1, exchange.missing[number]
        neighbours = effective_neighbours(exchange.weights[number][~missing])
        scores = {"effective_neighbours": float(neighbours.mean())}
        if bool(missing.any()):
            names = [n for n, lost in zip(self.clients, missing.tolist(), strict=True) if lost]
            text = f"round {done} of {self.count} ended without {', '.join(names)}"
            self.ctx.observe(Event(stage=self.stage, text=text))
        if done < self.count:
            tensors = {f"{EXCHANGE}/{k}": v for k, v in exchange.state_dict().items()}
            for name, client in self._here().items():
                tensors |= {f"{name}/{k}": v for k, v in client.module.state_dict().items()}
            Checkpoints(ctx=self.ctx).save(done, tensors, {})
        text = "checkpoint" if done < self.count else ""
        self.ctx.observe(
            Event(stage=self.stage, text=text, done=done, total=self.count, scores=scores)
        )

    def _resume(self, exchange: Exchange) -> int:
        """The first round that is still to be run; what the earlier ones left is put back."""
        found = Checkpoints(ctx=self.ctx).last()
        if found is None:
            return 0
        tensors, record = found
        exchange.load_state_dict(below(tensors, f"{EXCHANGE}/"))
        for name, client in self._here().items():
            client.module.load_state_dict(below(tensors, f"{name}/"))
        done = int(record["step"])
        text = f"resumed at round {done}"
        self.ctx.observe(Event(stage=self.stage, text=text, done=done, total=self.count))
        return done

    def _here(self) -> dict[str, Client]:
        return {name: client for name, client in self.clients.items() if isinstance(client, Client)}


def saved(clients: Mapping[str, Built], played: Played, ctx: Context) -> Result:
    """Every client, and "exchange", in the folder of the stage."""
    count, number = played.exchange.weights.shape[:2]
    spec = Model(build=Exchange, kwargs={"rounds": count, "clients": number})
    built = {**clients, EXCHANGE: Built(spec=spec, module=played.exchange)}
    return Result(
        outputs={name: save_model(ctx.out / name, each) for name, each in built.items()},
        measured=played.measured,
        resumed_at=played.resumed_at,
    )


def exchange_from(tensors: Mapping[str, Tensor]) -> Exchange:
    """The exchange whose state these tensors are."""
    exchange = Exchange(*tensors["weights"].shape[:2])
    exchange.load_state_dict(dict(tensors))
    return exchange
