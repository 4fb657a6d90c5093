"""Selection by training: the score that a score without training stands in for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, nn

from stillhouse.artifact import Built, Model
from stillhouse.cache import Cache, stored
from stillhouse.data.data import Data
from stillhouse.errors import BadSetting
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Objective
from stillhouse.recipe import Context
from stillhouse.training import Augment, Setup, alone

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
        self.setup(0)

    def setup(self, seed: int) -> Setup:
        return Setup(
            steps=self.steps, batch=self.batch, seed=seed, augment=self.augment, views=self.views
        )

    def within(self, ctx: Context) -> "TrainedWithin":
        """The score, where it runs: on what device, with which caches."""
        return TrainedWithin(score=self, ctx=alone(ctx))


@dataclass(frozen=True, kw_only=True)
class TrainedWithin:
    """`Trained` in a stage's context. A candidate's training leaves no checkpoint of its own."""

    score: Trained
    ctx: Context

    def __call__(self, candidate: Model, inputs: Mapping[str, Any], *, rng: Generator) -> float:
        # Any: what each input's opener returns
        validation = named(inputs, VALIDATION, what="input", where="score by training")
        data = named(inputs, DATA, what="input", where="score by training")
        student = self.train(candidate, self.frozen(inputs, data), data, rng=rng)
        return self._accuracy(student, validation)

    def frozen(self, inputs: Mapping[str, Any], data: Data) -> dict[str, nn.Module]:
        """The frozen roles, with stand-ins for those whose outputs are computed once."""
        given: dict[str, Built] = {k: v for k, v in inputs.items() if k not in (DATA, VALIDATION)}
        roles = {role: built.module for role, built in given.items()}
        setup, ctx = self.score.setup(0), self.ctx
        for role, cache in self.score.cache.items():
            module = named(roles, role, what="role", where="score by training: cache")
            roles[role] = stored(role, module, data, setup=setup, cache=cache, ctx=ctx)
        return roles

    def train(
        self, candidate: Model, frozen: Mapping[str, nn.Module], data: Data, *, rng: Generator
    ) -> nn.Module:
        """A trained candidate, on the CPU in eval mode."""
        from stillhouse.engine import (
            fit,
        )  # mmengine takes seconds to import; recipes are built without it

        score = self.score
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(int(torch.randint(2**62, (), generator=rng)))
            models: dict[str, nn.Module] = {score.student: candidate.new(), **frozen}
            seed = int(torch.randint(2**62, (), generator=rng))
            fit(score.objective, models, data, setup=score.setup(seed), ctx=self.ctx)
        return models[score.student]

    def _accuracy(self, student: nn.Module, validation: Data) -> float:
        # torchmetrics takes seconds to import; recipes are built without it
        from stillhouse.metrics.classification import Classification

        role = self.score.student
        with torch.no_grad():
            models = {role: student.to(self.ctx.device)}
            return Classification(role=role)(models, validation)["accuracy"]
