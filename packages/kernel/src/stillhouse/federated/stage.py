"""Federate: rounds of clients inside one stage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from stillhouse.artifact import Artifact, Built, Model
from stillhouse.data.data import TensorData
from stillhouse.digest import text_digest
from stillhouse.errors import BadData, BadRecipe, BadSetting, UnknownName
from stillhouse.federated.clients import Client, Plan
from stillhouse.federated.rounds import EXCHANGE, Rounds, saved
from stillhouse.federated.rules import Rule
from stillhouse.federated.server import Server
from stillhouse.recipe import STAGE_NAME, Context
from stillhouse.training import mix

TRANSFER, DATA = "transfer", "-data"
# what a client's seed is for; clients.py has the others
FRESH = 3


@dataclass(frozen=True, kw_only=True)
class Federate:
    """Trains clients with their own models and data for `rounds` rounds of learning, fusion by
    `rule` and absorbing (KnFu, arXiv 2403.11892; a reconstruction, see fusion.py).

    Ports: "transfer", the set all clients share (with "labels", if it has any); "<client>-data" for
    each client (with "labels"); a port with a client's name is a model to start from. `fresh`
    clients are built here. `rule` None: each client learns alone, and needs no transfer set.
    Fusion begins after `warmup` rounds: estimates from models that have learnt nothing are wrong.

    Outputs: every client, and "exchange" (see `Exchange`). Only arrays [transfer set, classes]
    leave a client. Between rounds all clients are in a checkpoint, and a killed stage goes on from
    the last round to the same bits. The engine is this process; clients take turns.
    """

    name: str
    inputs: Mapping[str, str]
    rounds: int
    classes: int
    rule: Rule | None
    fresh: Mapping[str, Model] = field(default_factory=dict[str, Model])
    plan: Plan = field(default_factory=Plan)
    warmup: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        where = f"stage '{self.name}'"
        for name, least in (("rounds", 1), ("classes", 2), ("warmup", 0)):
            if getattr(self, name) < least:
                raise BadSetting(f"{where}: {name} must be >= {least} (got {getattr(self, name)})")
        if not self.clients:
            raise BadRecipe(f"{where}: no client; name models in `fresh` or ports")
        for client in self.clients:
            taken = client in (TRANSFER, EXCHANGE) or client.endswith(DATA)
            if taken or not STAGE_NAME.fullmatch(client):
                raise BadRecipe(
                    f"{where}: a client cannot be called '{client}': letters, digits, '-' and '_', "
                    f"not '{TRANSFER}', not '{EXCHANGE}' and not '...{DATA}'"
                )
            if client in self.fresh and client in self.inputs:
                raise BadRecipe(f"{where}: client '{client}' is both fresh and a port")
            if client + DATA not in self.inputs:
                raise BadRecipe(
                    f"{where}: client '{client}' has no data; add a port '{client}{DATA}'"
                )
        for port in self.inputs:
            if port.endswith(DATA) and port.removesuffix(DATA) not in self.clients:
                raise UnknownName("client", port.removesuffix(DATA), self.clients, where=where)
        if self.rule is not None and TRANSFER not in self.inputs:
            raise BadRecipe(f"{where}: no port '{TRANSFER}'; fusion needs a transfer set")

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients, in the order of the weight matrix: shorter ones first, so that
        client-2 comes before client-10.
        """
        ports = {port for port in self.inputs if port != TRANSFER and not port.endswith(DATA)}
        return tuple(sorted({*self.fresh, *ports}, key=_by_length))

    @property
    def distributed(self) -> bool:
        return False

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*self.clients, EXCHANGE)

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Mapping[str, Artifact]:
        built = self.built(inputs)
        parties = self.parties(inputs, built, ctx)
        turn = partial(self._round, parties=parties)
        exchange = Rounds(stage=self.name, count=self.rounds, parties=parties, ctx=ctx).play(turn)
        return saved(built, exchange, ctx)

    def built(self, inputs: Mapping[str, Artifact]) -> dict[str, Built]:
        """The clients' models before the first round."""
        return {name: self._built(name, inputs) for name in self.clients}

    def parties(
        self, inputs: Mapping[str, Artifact], built: Mapping[str, Built], ctx: Context
    ) -> dict[str, Client]:
        """The clients, each with its own data and the set all share."""
        transfer = TensorData({}) if self.rule is None else self._data(TRANSFER, inputs)
        return {
            name: Client(
                module=built[name].module,
                data=self._data(name + DATA, inputs),
                transfer=transfer,
                plan=self.plan,
                seed=self._seed(name),
                ctx=ctx,
            )
            for name in self.clients
        }

    def _round(self, number: int, *, parties: Mapping[str, Client]) -> tuple[Tensor, Tensor]:
        for party in parties.values():
            party.learn(number)
        if self.rule is None or number < self.warmup:
            none = torch.zeros(len(parties), 2, dtype=torch.int64)
            return torch.eye(len(parties)), none
        transfer = next(iter(parties.values())).transfer
        server = Server(
            rule=self.rule,
            temperature=self.plan.temperature,
            samples=len(transfer),
            classes=self.classes,
            labels=_labels(transfer),
        )
        return server.round(number, list(parties), list(parties.values()))

    def _data(self, port: str, inputs: Mapping[str, Artifact]) -> TensorData:
        """The opened data of a port, its labels checked."""
        where = f"stage '{self.name}': port '{port}'"
        data = inputs[port].open()
        if not isinstance(data, TensorData):
            raise BadRecipe(f"{where} must be a stage's data (got {self.inputs[port]})")
        labels = _labels(data)
        if len(data) == 0:
            raise BadData(f"{where} holds no sample")
        if labels is None and port != TRANSFER:
            raise BadData(f"{where} has no column 'labels'; a client learns from labels")
        if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise BadData(
                f"{where}: labels must be 0 ... {self.classes - 1} "
                f"(got {int(labels.min())} ... {int(labels.max())})"
            )
        return data

    def _built(self, name: str, inputs: Mapping[str, Artifact]) -> Built:
        if name in inputs:
            opened: Built = inputs[name].open()
            return opened
        spec = self.fresh[name]
        with torch.random.fork_rng():
            torch.manual_seed(mix(self._seed(name), FRESH))
            return Built(spec=spec, module=spec.new())

    def _seed(self, name: str) -> int:
        """A client's own seed: the same whoever else takes part."""
        return mix(self.seed, int(text_digest(name)[:15], 16))


def _by_length(name: str) -> tuple[int, str]:
    return len(name), name


def _labels(data: TensorData) -> Tensor | None:
    labels = data.columns.get("labels")
    return labels if isinstance(labels, Tensor) else None
