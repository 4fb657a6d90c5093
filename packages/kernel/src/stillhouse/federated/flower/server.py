"""The server's side of a federation on Flower: the stage's own rounds with clients far away."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from stillhouse.artifact import Artifact
from stillhouse.errors import ClientLost, ContractError, UnknownName
from stillhouse.federated.flower import bridge, messages
from stillhouse.federated.rounds import Played, Rounds
from stillhouse.federated.server import Server
from stillhouse.federated.stage import Federate
from stillhouse.recipe import Context, Event

POLL_SECONDS = 0.2
# how long it waits for nodes before it reports so
PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The nodes of a federation, queried all at once. A node that has not answered after `seconds`,
    or that Flower reports as failed, is missing from the round; all nodes are queried again in the
    next. `alive` is called while it waits, and may raise.
    """

    grid: bridge.Grid
    ctx: Context
    clients: tuple[str, ...]
    seconds: float
    alive: Callable[[], None]
    answers: dict[str, Tensor | None] = field(default_factory=dict[str, Tensor | None])
    teachers: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    nodes: dict[str, int] = field(default_factory=dict[str, int])

    def gather(self) -> None:
        """Wait until there is a node for each client, `seconds` at most."""
        began, reported = time.monotonic(), -1
        while (here := len(list(self.grid.get_node_ids()))) < len(self.clients):
            waited = time.monotonic() - began
            if waited > self.seconds:
                return
            if waited > PATIENCE_SECONDS and here != reported:
                self._report(f"waits for {len(self.clients)} nodes; {here} are there")
                reported = here
            self._wait()

    def query(self, number: int) -> None:
        """Let every client learn; keep what they answer."""
        self.answers.clear()
        sent = [messages.query(node, number) for node in sorted(self.grid.get_node_ids())]
        for reply in self._replies(sent, number, "learning"):
            client, known = messages.read(reply, number)
            if client not in self.clients:
                raise UnknownName("client", client, self.clients, where="answer of a node")
            if client in self.answers:
                raise ContractError(f"client '{client}': two nodes say that they are it")
            self.answers[client], self.nodes[client] = known, bridge.sender(reply)

    def hand_out(self, number: int) -> None:
        """Send the teachers that the server has made."""
        sent = [messages.teach(self.nodes[c], number, made) for c, made in self.teachers.items()]
        self.teachers.clear()
        for reply in self._replies(sent, number, "absorbing"):
            messages.read(reply, number)

    def _replies(self, sent: Iterable[Any], number: int, doing: str) -> Iterable[Any]:
        waiting = [name for name in self.grid.push_messages(list(sent)) if name]
        deadline = time.monotonic() + self.seconds
        while waiting and time.monotonic() < deadline:
            for reply in list(self.grid.pull_messages(waiting)):
                waiting.remove(str(reply.metadata.reply_to_message_id))
                if (reason := bridge.failure(reply)) is None:
                    yield reply
                else:
                    self._report(f"round {number + 1}, {doing}: a client failed ({reason})")
            self._wait()
        if waiting:
            late = f"{len(waiting)} of the clients have not answered after {self.seconds:g} s"
            self._report(f"round {number + 1}, {doing}: {late}")

    def _wait(self) -> None:
        self.alive()
        time.sleep(POLL_SECONDS)

    def _report(self, text: str) -> None:
        self.ctx.observe(Event(stage=self.ctx.stage, text=text))


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A client on a node, as the stage's rounds see it: its answers have arrived already."""

    name: str
    fleet: Fleet

    def learn(self, number: int) -> None:
        if self.name not in self.fleet.answers:
            raise ClientLost(f"client '{self.name}' is missing from round {number + 1}")

    def knowledge(self) -> Tensor:
        known = self.fleet.answers[self.name]
        if known is None:
            raise ClientLost(f"client '{self.name}' has sent no predictions")
        return known

    def absorb(self, number: int, fused: Tensor) -> None:
        self.fleet.teachers[self.name] = fused


def serve(
    stage: Federate,
    inputs: Mapping[str, Artifact],
    grid: bridge.Grid,
    ctx: Context,
    *,
    seconds: float,
    alive: Callable[[], None],
) -> Played:
    """Play the rounds of a stage with the clients on the grid's nodes. Of the inputs only the
    transfer set is read. Raises ClientLost when a round has no client left.
    """
    fleet = Fleet(grid=grid, ctx=ctx, clients=stage.clients, seconds=seconds, alive=alive)
    fleet.gather()
    clients = {name: Remote(name=name, fleet=fleet) for name in stage.clients}
    # who shares nothing sends nothing: such a client is its own teacher where it is
    server = stage.server(inputs) if stage.rule is not None and stage.rule.shares else None
    play_round = partial(_play_round, stage=stage, fleet=fleet, clients=clients, server=server)
    return Rounds(stage=stage.name, count=stage.rounds, clients=clients, ctx=ctx).play(play_round)


def _play_round(
    number: int,
    *,
    stage: Federate,
    fleet: Fleet,
    clients: Mapping[str, Remote],
    server: Server | None,
) -> tuple[Tensor, Tensor]:
    fleet.query(number)
    found = stage.round(number, clients=clients, server=server)
    fleet.hand_out(number)
    return found
