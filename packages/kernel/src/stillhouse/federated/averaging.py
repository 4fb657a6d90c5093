"""FedAvg, a baseline that BREAKS the rule of this package: here weights leave the clients.

N: clients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from stillhouse.artifact import Artifact, Built
from stillhouse.digest import digest
from stillhouse.errors import BadRecipe, BadSetting
from stillhouse.federated.clients import Client
from stillhouse.federated.rounds import Rounds, saved
from stillhouse.federated.stage import Federate
from stillhouse.objectives.objective import Tensors
from stillhouse.recipe import BaseStage, Context, Resource, Result


@dataclass(frozen=True, kw_only=True)
class FedAvg(BaseStage):
    """Federated averaging (McMahan et al. 2017, arXiv 1602.05629, algorithm 1) among the clients of
    a `federation` without a rule: a round is learning on one's own data, then the mean of the
    weights, each client counting by its number of samples.

    Only clients of the same architecture (the same model spec) can be averaged: each architecture
    is a federation of its own. Its clients start from the weights of its first one, because
    means of unrelated weights are no models; a client without fellows learns alone.
    BatchNorm's statistics are averaged with the weights. All clients take part in every round.

    Ports and outputs are the federation's. "exchange" counts the bytes of weights up and down (the
    common start is free: a seed says it), and its matrix is what each mean is made of. Always in
    this process. Differs: the paper has one architecture, and one model for all.
    """

    federation: Federate

    def __post_init__(self) -> None:
        if self.federation.rule is not None:
            raise BadRecipe(f"stage '{self.name}': FedAvg needs a federation without a rule")

    @property
    def name(self) -> str:
        return self.federation.name

    @property
    def seed(self) -> int:
        return self.federation.seed

    @property
    def inputs(self) -> Mapping[str, str]:
        return self.federation.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.federation.outputs

    @property
    def resource(self) -> Resource:
        return self.federation.resource

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Result:
        built = self.federation.built(inputs)
        clients = self.federation.local_clients(inputs, built, ctx)
        groups = fellows(built)
        for group in groups:
            first = clients[group[0]].module.state_dict()
            for name in group:
                clients[name].module.load_state_dict(first)
        rounds = Rounds(stage=self.name, count=self.federation.rounds, clients=clients, ctx=ctx)
        return saved(built, rounds.play(partial(_round, clients=clients, groups=groups)), ctx)


def fellows(built: Mapping[str, Built]) -> tuple[tuple[str, ...], ...]:
    """The clients of each architecture, in their order."""
    groups: dict[str, list[str]] = {}
    for name, each in built.items():
        groups.setdefault(digest(each.spec), []).append(name)
    return tuple(tuple(group) for group in groups.values())


def weighted_mean(states: Sequence[Tensors], counts: Sequence[int]) -> dict[str, Tensor]:
    """The mean of each tensor over the states, state k counting `counts[k]` / sum(counts); summed
    in float64, whole numbers (BatchNorm's count of batches) rounded.

    Raises BadSetting unless there is a count >= 1 for each of at least one state.
    """
    if not states or len(states) != len(counts) or min(counts) < 1:
        raise BadSetting(
            f"a mean of weights needs a count >= 1 for each state "
            f"(got {len(states)} states and counts {list(counts)})"
        )
    shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    return {name: _mean([state[name] for state in states], shares) for name in states[0]}


def _mean(values: Sequence[Tensor], shares: Tensor) -> Tensor:
    mean = torch.tensordot(shares, torch.stack(list(values)).double(), dims=1)
    kind = values[0].dtype
    return (mean if kind.is_floating_point else mean.round()).to(kind)


def _round(
    number: int, *, clients: Mapping[str, Client], groups: Sequence[Sequence[str]]
) -> tuple[Tensor, Tensor]:
    names = list(clients)
    weights = torch.eye(len(names))
    sent = torch.zeros(len(names), 2, dtype=torch.int64)
    for client in clients.values():
        client.learn(number)
    for group in groups:
        if len(group) == 1:
            continue
        rows = torch.tensor([names.index(name) for name in group])
        counts = [len(clients[name].data) for name in group]
        states = [clients[name].module.state_dict() for name in group]
        mean = weighted_mean(states, counts)
        for name in group:
            clients[name].module.load_state_dict(mean)
        weights[rows[:, None], rows] = torch.tensor(counts) / sum(counts)
        sent[rows] = sum(value.nbytes for value in mean.values())
    return weights, sent
