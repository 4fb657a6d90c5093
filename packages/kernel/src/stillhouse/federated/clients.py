"""Clients: what each does with its own data, and the one kind of array that leaves it.

M: samples of the transfer set. C: classes. B: samples of a batch.

A round of a client: `learn` (cross-entropy on its own data), `knowledge` (log-probabilities on the
transfer set, [M, C]: the only thing that leaves), `absorb` (fit the fused teacher on the transfer
set). The four steps are the paper's; epochs, losses and temperature are a reconstruction.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stillhouse.data.data import Data, TensorData
from stillhouse.engine import fit
from stillhouse.errors import BadSetting
from stillhouse.objectives.declared import Positive, SampleMean, check_declared
from stillhouse.objectives.inputs import full, pick, positive
from stillhouse.objectives.objective import Composed, Optimizer, Phase, Weighted
from stillhouse.objectives.supervised import cross_entropy_loss
from stillhouse.objectives.term import Term
from stillhouse.recipe import Context
from stillhouse.training import Setup, alone, mix, pass_length

ROLE = "client"
TARGETS = "fused"
# what a client's seed is for, beside its round
LEARN, ABSORB = range(1, 3)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a client trains: passes over its own data and over the transfer set each round.

    The optimizer starts anew each time: its state is not carried from round to round.
    `temperature` softens what is fused and fitted. All defaults are ours (a reconstruction).
    """

    optimizer: Optimizer = field(default_factory=lambda: Optimizer(build=torch.optim.Adam, lr=1e-3))
    batch: int = 32
    epochs: int = 5
    absorb_epochs: int = 5
    temperature: float = 2.0

    def __post_init__(self) -> None:
        positive("temperature", self.temperature)
        for name in ("batch", "epochs", "absorb_epochs"):
            if getattr(self, name) < 1:
                raise BadSetting(f"{name} must be >= 1 (got {getattr(self, name)})")


@runtime_checkable
class ClientProxy(Protocol):
    """A client as the server sees it: predictions out, a fused teacher in, and no way to more."""

    def learn(self, number: int) -> None:
        """Round `number`: train on its own data."""
        ...

    def knowledge(self) -> Float[Tensor, "M C"]:
        """Log-probabilities at temperature 1 on the transfer set, in its order."""
        ...

    def absorb(self, number: int, fused: Float[Tensor, "M C"]) -> None:
        """Round `number`: fit the fused probabilities on the transfer set."""
        ...


@dataclass(frozen=True, kw_only=True)
class Client:
    """A client in this process. Its bits depend on its seed, its data, and what it absorbs: not on
    the other clients or their order.
    """

    module: nn.Module
    data: Data
    transfer: TensorData
    plan: Plan
    seed: int
    ctx: Context

    def learn(self, number: int) -> None:
        term = Term(cross_entropy_loss, f"{ROLE}.logits", "batch.labels")
        self._fit("ce", term, self.data, self.plan.epochs, mix(self.seed, LEARN, number))

    def knowledge(self) -> Float[Tensor, "M C"]:
        module = self.module.to(self.ctx.device).eval()
        rows: list[Tensor] = []
        with torch.no_grad():
            for batch in self.transfer.batches(self.plan.batch, rng=None):
                moved = {name: value.to(self.ctx.device) for name, value in batch.items()}
                logits = pick({ROLE: module(moved)}, ROLE, "logits")
                rows.append(F.log_softmax(logits.float(), dim=1).cpu())
        module.to("cpu")
        return torch.cat(rows)

    def absorb(self, number: int, fused: Float[Tensor, "M C"]) -> None:
        data = TensorData({**self.transfer.columns, TARGETS: fused})
        temperature = self.plan.temperature
        term = Term(fused_loss, f"{ROLE}.logits", f"batch.{TARGETS}", temperature=temperature)
        self._fit("kd", term, data, self.plan.absorb_epochs, mix(self.seed, ABSORB, number))

    def _fit(self, name: str, term: Term, data: Data, epochs: int, seed: int) -> None:
        phase = Phase(trains=(ROLE,), optimizer=self.plan.optimizer)
        objective = Composed(phases={"main": phase}, losses={name: Weighted(term=term)})
        steps = epochs * pass_length(data, self.plan.batch)
        setup = Setup(steps=steps, batch=self.plan.batch, seed=seed)
        fit(objective, {ROLE: self.module}, data, setup=setup, ctx=alone(self.ctx))


def fused_loss(
    logits: Float[Tensor, "B C"], fused: Float[Tensor, "B C"], *, temperature: Positive
) -> SampleMean:
    """T^2 KL(fused || softmax(logits / T)), in nats; sum over C, mean over B (reconstruction of the
    paper's fine-tuning). `fused` are probabilities that already are at temperature T > 0.
    """
    check_declared(fused_loss, temperature=temperature)
    p = F.log_softmax(full(logits) / temperature, dim=1)
    return temperature**2 * F.kl_div(p, full(fused.detach()), reduction="batchmean")
