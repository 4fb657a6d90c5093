"""Selection by training: the score that a score without training stands in for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, nn

from stillhouse.artifact import Built, Model
from stillhouse.cache import Cache, stored
from stillhouse.data.data import Data
from stillhouse.engine import fit
from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Objective
from stillhouse.packing import check_reads
from stillhouse.recipe import Context
from stillhouse.search.space import SearchSpace
from stillhouse.training import Augment, Setup, alone
from stillhouse.work import Work

DATA, VALIDATION = "data", "validation"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Accuracy on the port "validation" after a training of `steps` steps of `objective` on the
    port "data", from fresh weights.

    The candidate is the role `student`; every other port is a frozen role. Weights and batches are
    drawn anew for each candidate. `cache` names the outputs of frozen roles that are computed once
    for all candidates. Give held-out training data for validation, never test data: the best score
    of many is no estimate of anything.
    """

    objective: Objective
    steps: int
    batch: int
    student: str = "student"
    augment: Augment | None = None
    views: int = 4
    cache: Mapping[str, Cache] = field(default_factory=dict[str, Cache])

    def __post_init__(self) -> None:
        trains = {role for phase in self.objective.phases.values() for role in phase.trains}
        if trains != {self.student}:
            raise BadSetting(
                f"a score by training trains '{self.student}' alone "
                f"(the objective trains {', '.join(sorted(trains))})"
            )
        for role, cache in self.cache.items():
            check_reads(role, cache, self.objective, where="score by training")
        self.setup(0)

    def setup(self, seed: int) -> Setup:
        return Setup(
            steps=self.steps, batch=self.batch, seed=seed, augment=self.augment, views=self.views
        )

    def prepare(
        self, space: SearchSpace, inputs: Mapping[str, Any], *, work: Work
    ) -> "PreparedTrained":  # Any: what each input's opener returns
        data = named(inputs, DATA, what="input", where="score by training")
        given: dict[str, Built] = {k: v for k, v in inputs.items() if k not in (DATA, VALIDATION)}
        roles = {role: built.module for role, built in given.items()}
        setup = self.setup(0)
        for role, cache in self.cache.items():
            built = named(given, role, what="role", where="score by training: cache")
            roles[role] = stored(role, built, data, setup=setup, cache=cache, ctx=work.ctx)
        return PreparedTrained(score=self, frozen=roles, ctx=alone(work.ctx))


@dataclass(frozen=True, kw_only=True)
class PreparedTrained:
    """`Trained` where it runs, its frozen roles opened. A candidate's training leaves no checkpoint
    of its own.
    """

    score: Trained
    frozen: Mapping[str, nn.Module]
    ctx: Context

    def __call__(self, candidate: Model, inputs: Mapping[str, Any], *, work: Work) -> float:
        # Any: what each input's opener returns
        validation = named(inputs, VALIDATION, what="input", where="score by training")
        return self._accuracy(self.train(candidate, inputs[DATA], rng=work.rng), validation, work)

    def train(self, candidate: Model, data: Data, *, rng: Generator) -> nn.Module:
        """The candidate after its training, on the CPU in eval mode."""
        score = self.score
        weights, batches = (int(torch.randint(2**62, (), generator=rng)) for _ in range(2))
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(weights)
            models: dict[str, nn.Module] = {score.student: candidate.new(), **self.frozen}
            fit(score.objective, models, data, setup=score.setup(batches), ctx=self.ctx)
        return models[score.student]

    def _accuracy(self, student: nn.Module, validation: Data, work: Work) -> float:
        # torchmetrics takes seconds to import; recipes are built without it
        from stillhouse.metrics.classification import Classification

        role = self.score.student
        with torch.no_grad():
            models = {role: student.to(self.ctx.device)}
            return Classification(role=role)(models, validation, work=work)["accuracy"]
