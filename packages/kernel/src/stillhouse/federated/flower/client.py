"""What a node does with a message: it has one client, and keeps its weights on its own disk.

M: samples of the transfer set. C: classes.
"""

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from stillhouse.artifact import Artifact
from stillhouse.checkpoint import last_checkpoint, save_checkpoint
from stillhouse.errors import ClientLost
from stillhouse.federated.clients import Client
from stillhouse.federated.flower.bridge import Config, Names
from stillhouse.federated.flower.messages import ABSORB, CLIENT, FUSED, KNOWLEDGE, LEARN, ROUND
from stillhouse.federated.stage import Federate
from stillhouse.recipe import Context


@dataclass(frozen=True, kw_only=True)
class Seat:
    """A client of a stage on this machine: its name, the inputs it may read (its own data and model
    and the transfer set), the folder that keeps its weights, and on what it trains.
    """

    name: str
    stage: Federate
    inputs: Mapping[str, Artifact]
    folder: Path
    device: str
    threads: int

    def learn(self, number: int) -> Tensor | None:
        """Learn round `number`, once however often it is requested; what is sent: log-probabilities
        [M, C], or None in a round without fusion and for a rule that shares nothing (the client
        then absorbs its own predictions).
        """
        client, rule = self._client(), self.stage.rule
        if not self._load(client.module, LEARN, number):
            self._load_before(client.module, number)
            client.learn(number)
            self._save(client.module, LEARN, number)
        if rule is None or not self.stage.fuses(number):
            return None
        known = client.knowledge()
        if rule.shares:
            return known
        server = self.stage.server(self.inputs)
        assert server is not None
        fused, _ = server.teach(known[None])
        self._absorb(client, number, fused[0])
        return None

    def absorb(self, number: int, fused: Tensor) -> None:
        """Absorb the teacher [M, C] of round `number`; raises ClientLost unless it was learnt."""
        client = self._client()
        if not self._load(client.module, LEARN, number):
            raise ClientLost(f"client '{self.name}' has not learnt round {number + 1}")
        self._absorb(client, number, fused)

    def weights(self) -> dict[str, Tensor]:
        """The newest weights it has kept; empty before its first round."""
        return newest(self.folder, self.stage.rounds)

    def _absorb(self, client: Client, number: int, fused: Tensor) -> None:
        client.absorb(number, fused)
        self._save(client.module, ABSORB, number)

    def _client(self) -> Client:
        torch.set_num_threads(self.threads)
        ctx = Context(
            stage=self.stage.name,
            out=self.folder,
            checkpoints=self.folder,
            caches=self.folder,
            device=self.device,
        )
        return self.stage.client(self.name, self.inputs, ctx)[0]

    def _save(self, module: nn.Module, kind: str, number: int) -> None:
        save_checkpoint(self.folder / kind, number, module.state_dict(), {})

    def _load(self, module: nn.Module, kind: str, number: int) -> bool:
        found = last_checkpoint(self.folder / kind)
        if found is None or int(found[1]["step"]) != number:
            return False
        module.load_state_dict(found[0])
        return True

    def _load_before(self, module: nn.Module, number: int) -> None:
        """The newest weights from before round `number`: a client that missed a round goes on from
        where it was.
        """
        if state := newest(self.folder, number):
            module.load_state_dict(state)


def newest(folder: Path, before: int) -> dict[str, Tensor]:
    """The newest weights a client's folder has from before a round; empty where there are none."""
    last, state = (-1, 0), dict[str, Tensor]()
    # of one round, absorbing comes after learning
    for order, kind in enumerate((LEARN, ABSORB)):
        found = last_checkpoint(folder / kind)
        if found is not None and last < (int(found[1]["step"]), order) < (before, 0):
            last, state = (int(found[1]["step"]), order), found[0]
    return state


# which client a node is, from the configurations of the run and of the node
Seats = Callable[[Config, Config], Seat]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The ClientApp: an array [M, C] leaves in answer to "learn", nothing in answer to "absorb".

    The text of an error stays here, in the node's log: it may quote the data.
    """

    seats: Seats

    def __call__(
        self, action: str, names: Names, arrays: Mapping[str, Tensor], run: Config, node: Config
    ) -> tuple[Names, dict[str, Tensor]]:
        try:
            seat, number = self.seats(run, node), int(names[ROUND])
            known = seat.learn(number) if action == LEARN else None
            if action == ABSORB:
                seat.absorb(number, arrays[FUSED])
        except Exception as error:
            logging.getLogger(__name__).error(traceback.format_exc())
            raise ClientLost(f"{type(error).__name__}; its log has the rest") from None
        return {ROUND: number, CLIENT: seat.name}, {} if known is None else {KNOWLEDGE: known}
