"""Federate: rounds of clients inside one stage."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from stillhouse.artifact import Artifact, Built, Model
from stillhouse.data.data import RowData, TensorData, in_memory
from stillhouse.errors import BadData, BadRecipe, BadSetting, ClientLost, UnknownName
from stillhouse.federated.clients import Client, ClientProxy, Plan
from stillhouse.federated.engines import check_engine
from stillhouse.federated.rounds import EXCHANGE, Rounds, saved
from stillhouse.federated.rules import Rule
from stillhouse.federated.server import Server, among
from stillhouse.recipe import STAGE_NAME, BaseStage, Context, Resource, Result
from stillhouse.training import mix, named_seed

TRANSFER, DATA = "transfer", "-data"
# what a client's seed is for; clients.py has the others
FRESH = 3


@dataclass(frozen=True, kw_only=True)
class Federate(BaseStage):
    """Trains clients with their own models and data for `rounds` rounds of learning, fusion by
    `rule` and absorbing (KnFu, arXiv 2403.11892; a reconstruction, see fusion.py).

    Ports: "transfer", the set all clients share (with "labels", if it has any); "<client>-data" for
    each client (with "labels"); a port with a client's name is a model to start from. `fresh`
    clients are built here. `rule` None: each client learns alone, and needs no transfer set.
    Fusion begins after `warmup` rounds: estimates from models that have learnt nothing are wrong.

    Outputs: every client, and "exchange" (see `Exchange`). Only arrays [transfer set, classes]
    leave a client. Between rounds all clients are in a checkpoint, and a killed stage goes on from
    the last round to the same bits.

    Where the clients run is the context's `engine`: "local" is this process, where they take turns
    and an error of one ends the stage; "flower" is Flower (see federated/flower), where a client
    that dies is missing from its round. Both give the same bits.
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
    def resource(self) -> Resource:
        return "gpu"

    @property
    def outputs(self) -> tuple[str, ...]:
        return (*self.clients, EXCHANGE)

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Result:
        check_engine(ctx.engine)
        if ctx.engine == "flower":
            from stillhouse.federated.flower.run import run_flower  # an optional package

            return run_flower(self, inputs, ctx)
        built = self.built(inputs)
        clients = self.local_clients(inputs, built, ctx)
        server = self.server(inputs)
        play_round = partial(self.round, clients=clients, server=server)
        rounds = Rounds(stage=self.name, count=self.rounds, clients=clients, ctx=ctx)
        return saved(built, rounds.play(play_round), ctx)

    def built(self, inputs: Mapping[str, Artifact]) -> dict[str, Built]:
        """The clients' models before the first round."""
        return {name: self._built(name, inputs) for name in self.clients}

    def local_clients(
        self, inputs: Mapping[str, Artifact], built: Mapping[str, Built], ctx: Context
    ) -> dict[str, Client]:
        """The clients, each with its own data and the set all share."""
        transfer = self._transfer(inputs)
        return {
            name: self._client(name, built[name], transfer, inputs, ctx) for name in self.clients
        }

    def client(
        self, name: str, inputs: Mapping[str, Artifact], ctx: Context
    ) -> tuple[Client, Built]:
        """One client and its model before the first round; the data of the others are not read."""
        built = self._built(name, inputs)
        return self._client(name, built, self._transfer(inputs), inputs, ctx), built

    def server(self, inputs: Mapping[str, Artifact]) -> Server | None:
        """The server, which knows the transfer set's size and labels; None without a rule."""
        if self.rule is None:
            return None
        transfer = self._transfer(inputs)
        return Server(
            rule=self.rule,
            temperature=self.plan.temperature,
            samples=len(transfer),
            classes=self.classes,
            labels=_labels(transfer),
        )

    def fuses(self, number: int) -> bool:
        """Whether predictions are fused in round `number`."""
        return self.rule is not None and number >= self.warmup

    def round(
        self, number: int, *, clients: Mapping[str, ClientProxy], server: Server | None
    ) -> tuple[Float[Tensor, "N N"], Integer[Tensor, "N 2"]]:
        """One round, whatever the engine. A client that raises ClientLost is missing from it;
        raises ClientLost when all are.
        """
        here: list[int] = []
        for place, client in enumerate(clients.values()):
            with contextlib.suppress(ClientLost):
                client.learn(number)
                here.append(place)
        if not here:
            raise ClientLost(f"round {number + 1}: no client has answered ({', '.join(clients)})")
        sent = torch.zeros(len(clients), 2, dtype=torch.int64)
        if server is None or not self.fuses(number):
            return among(torch.eye(len(here)), here, len(clients)), sent
        names = list(clients)
        weights, sent[here] = server.round(
            number, [names[place] for place in here], [clients[names[place]] for place in here]
        )
        return among(weights, here, len(clients)), sent

    def _client(
        self,
        name: str,
        built: Built,
        transfer: TensorData,
        inputs: Mapping[str, Artifact],
        ctx: Context,
    ) -> Client:
        return Client(
            module=built.module,
            data=self._data(name + DATA, inputs),
            transfer=transfer,
            plan=self.plan,
            seed=self._seed(name),
            ctx=ctx,
        )

    def _transfer(self, inputs: Mapping[str, Artifact]) -> TensorData:
        return TensorData({}) if self.rule is None else in_memory(self._data(TRANSFER, inputs))

    def _data(self, port: str, inputs: Mapping[str, Artifact]) -> RowData:
        """The opened data of a port, its labels checked."""
        where = f"stage '{self.name}': port '{port}'"
        data = inputs[port].open()
        if not isinstance(data, RowData):
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
            opened = inputs[name].open()
            if not isinstance(opened, Built):
                raise BadRecipe(f"stage '{self.name}': port '{name}' holds no model for this role")
            return opened
        spec = self.fresh[name]
        with torch.random.fork_rng():
            torch.manual_seed(mix(self._seed(name), FRESH))
            return Built(spec=spec, module=spec.new())

    def _seed(self, name: str) -> int:
        """A client's own seed: the same whoever else takes part."""
        return named_seed(self.seed, name)


def _by_length(name: str) -> tuple[int, str]:
    return len(name), name


def _labels(data: RowData) -> Tensor | None:
    labels = data.columns.get("labels")
    return labels if isinstance(labels, Tensor) else None
