"""Search: a space (and roles, data) in, the best model under a budget out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator

from stillhouse.artifact import Artifact, Built, Model, save_model
from stillhouse.data.shards import save_data
from stillhouse.errors import BadRecipe, BadSetting
from stillhouse.recipe import Context, Event
from stillhouse.search.evolution import RandomSearch
from stillhouse.search.space import Encoding, SearchSpace, Strategy, Trial
from stillhouse.training import mix

PREPARE = -1  # the number of the generator that prepares a score; candidates count from 0


@runtime_checkable
class Score(Protocol):
    """How promising a candidate is (higher is better), from opened inputs; a frozen dataclass."""

    def __call__(self, candidate: Model, inputs: Mapping[str, Any], *, rng: Generator) -> float: ...


@runtime_checkable
class Preparing(Protocol):
    """A score that first works out what all candidates share: the batch, what the teacher gives.
    What it then returns scores them; a frozen dataclass.
    """

    def prepare(
        self, space: SearchSpace, inputs: Mapping[str, Any], *, rng: Generator
    ) -> Score: ...  # Any: what each input's opener returns


@dataclass(frozen=True, kw_only=True)
class Search:
    """Scores up to `trials` candidates within `budget` (cost name -> most allowed) and keeps the
    best one.

    Outputs: "model", the best candidate with weights drawn from `seed`, and "trials", a table with
    a row a candidate. Candidates over the budget are drawn again, not scored. Raises BadSetting
    when none fits.
    """

    name: str
    space: SearchSpace
    score: Score | Preparing
    budget: Mapping[str, float]
    trials: int
    inputs: Mapping[str, str]
    strategy: Strategy = field(default_factory=RandomSearch)
    seed: int = 0

    @property
    def distributed(self) -> bool:
        return False

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("model", "trials")

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Mapping[str, Artifact]:
        opened = {port: artifact.open() for port, artifact in inputs.items()}
        history: list[Trial] = []
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            scorer = self._scorer(opened)
            for encoding, cost, rng in self._candidates(history):
                score = scorer(self.space.model(encoding), opened, rng=rng)
                history.append(Trial(encoding=encoding, cost=cost, score=float(score)))
                ctx.observe(
                    Event(
                        stage=self.name,
                        done=len(history),
                        total=self.trials,
                        scores={"score": float(score)},
                    )
                )
            if not history:
                raise BadSetting(
                    f"stage '{self.name}': no candidate fits the budget {dict(self.budget)}; "
                    "raise it"
                )
            best = max(history, key=lambda trial: trial.score)
            spec = self.space.model(best.encoding)
            built = Built(spec=spec, module=spec.new())
        return {
            "model": save_model(ctx.out / "model", built),
            "trials": save_data(ctx.out / "trials", _table(history)),
        }

    def _scorer(self, opened: Mapping[str, Any]) -> Score:  # Any: opened inputs
        if not isinstance(self.score, Preparing):
            return self.score
        rng = Generator().manual_seed(mix(self.seed, PREPARE))
        return self.score.prepare(self.space, opened, rng=rng)

    def _candidates(
        self, history: list[Trial]
    ) -> Iterator[tuple[Encoding, Mapping[str, float], Generator]]:
        rng = Generator().manual_seed(mix(self.seed))
        refused: list[Trial] = []
        while len(history) < self.trials and len(refused) < 100 * self.trials:
            encoding = self.strategy.propose(self.space, history + refused, rng)
            if encoding is None:
                return
            cost = self.space.cost(encoding)
            if unknown := set(self.budget) - set(cost):
                raise BadRecipe(
                    f"stage '{self.name}': budget '{min(unknown)}' is not a cost of the space: "
                    f"{sorted(cost)}"
                )
            if any(cost[name] > most for name, most in self.budget.items()):
                refused.append(Trial(encoding=encoding, cost=cost, score=float("-inf")))
            else:
                yield encoding, cost, Generator().manual_seed(mix(self.seed, len(history)))


def _table(history: list[Trial]) -> dict[str, Any]:  # Any: a column
    columns: dict[str, Any] = {"encoding": [trial.key for trial in history]}
    columns["score"] = torch.tensor([trial.score for trial in history], dtype=torch.float64)
    for name in history[0].cost:
        columns[name] = torch.tensor([trial.cost[name] for trial in history], dtype=torch.float64)
    return columns
