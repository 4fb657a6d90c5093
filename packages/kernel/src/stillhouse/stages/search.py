"""Search: a space (and roles, data) in, the best model under a budget out."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator

from stillhouse.artifact import Artifact, Built, Model, save_model
from stillhouse.checkpoint import Checkpoints
from stillhouse.data.shards import save_data
from stillhouse.errors import BadRecipe, BadSetting
from stillhouse.recipe import BaseStage, Context, Event, Resource, Result
from stillhouse.search.evolution import RandomSearch
from stillhouse.search.ranking import ranked_last
from stillhouse.search.space import Encoding, SearchSpace, Strategy, Trial
from stillhouse.training import mix, rng_states, set_rng_states
from stillhouse.work import Work

PREPARE = -1  # the number of the generator that prepares a score; candidates count from 0


@runtime_checkable
class CandidateScore(Protocol):
    """How promising a candidate is (higher is better), from opened inputs; a frozen dataclass."""

    def __call__(self, candidate: Model, inputs: Mapping[str, Any], *, work: Work) -> float: ...


@runtime_checkable
class Preparing(Protocol):
    """A score that first works out what all candidates share: the batch, what the teacher gives.
    What it then returns scores them; a frozen dataclass. Prepared again where a killed search goes
    on, it must come out the same.
    """

    def prepare(
        self, space: SearchSpace, inputs: Mapping[str, Any], *, work: Work
    ) -> CandidateScore: ...  # Any: what each input's opener returns


@dataclass(frozen=True, kw_only=True)
class Search(BaseStage):
    """Scores up to `trials` candidates within `budget` (cost name -> most allowed) and keeps the
    best one.

    Outputs: "model", the best candidate with weights drawn from `seed`, and "trials", a table with
    a row a candidate; a score of -inf, a dead network, is stored as the lowest other one minus 1.
    Candidates over the budget are drawn again, not scored. Raises BadSetting when none fits. A
    killed search goes on after the last candidate of its checkpoint, to the same bits.
    """

    name: str
    space: SearchSpace
    score: CandidateScore | Preparing
    budget: Mapping[str, float]
    trials: int
    inputs: Mapping[str, str]
    strategy: Strategy = field(default_factory=RandomSearch)
    seed: int = 0

    @property
    def resource(self) -> Resource:
        return "gpu"

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("model", "trials")

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Result:
        opened = {port: artifact.open() for port, artifact in inputs.items()}
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            scorer = self._scorer(opened, ctx)
            state = _SearchState(total=self.trials, rng=Generator().manual_seed(mix(self.seed)))
            state.resume(ctx)
            for encoding, cost in self._candidates(state):
                work = Work.of(ctx, self.seed, len(state.history))
                score = scorer(self.space.model(encoding), opened, work=work)
                state.add(Trial(encoding=encoding, cost=cost, score=float(score)), ctx)
            if not state.history:
                raise BadSetting(
                    f"stage '{self.name}': no candidate fits the budget {dict(self.budget)}; "
                    "raise it"
                )
            best = max(state.history, key=lambda trial: trial.score)
            spec = self.space.model(best.encoding)
            built = Built(spec=spec, module=spec.new())
        return Result(
            outputs={
                "model": save_model(ctx.out / "model", built),
                "trials": save_data(ctx.out / "trials", _table(state.history)),
            },
            measured={"candidates": len(state.history), "refused": len(state.refused)},
            resumed_at=state.resumed_at,
        )

    def _scorer(
        self, opened: Mapping[str, Any], ctx: Context
    ) -> CandidateScore:  # Any: opened inputs
        if not isinstance(self.score, Preparing):
            return self.score
        return self.score.prepare(self.space, opened, work=Work.of(ctx, self.seed, PREPARE))

    def _candidates(self, state: "_SearchState") -> Iterator[tuple[Encoding, Mapping[str, float]]]:
        while len(state.history) < self.trials and len(state.refused) < 100 * self.trials:
            encoding = self.strategy.propose(self.space, state.history + state.refused, state.rng)
            if encoding is None:
                return
            cost = self.space.cost(encoding)
            if unknown := set(self.budget) - set(cost):
                raise BadRecipe(
                    f"stage '{self.name}': budget '{min(unknown)}' is not a cost of the space: "
                    f"{sorted(cost)}"
                )
            if any(cost[name] > most for name, most in self.budget.items()):
                state.refused.append(Trial(encoding=encoding, cost=cost, score=float("-inf")))
            else:
                yield encoding, cost


@dataclass(kw_only=True)
class _SearchState:
    """Where a search is: all that a resumed one needs to draw and score the same candidates."""

    total: int
    rng: Generator
    history: list[Trial] = field(default_factory=list[Trial])
    refused: list[Trial] = field(default_factory=list[Trial])
    saved: float = field(default_factory=time.monotonic)
    resumed_at: int | None = None

    def add(self, trial: Trial, ctx: Context) -> None:
        """Record and report a scored candidate, and write a checkpoint when one is due."""
        self.history.append(trial)
        self._report("", ctx, {"score": trial.score})
        if len(self.history) < self.total and self._due(ctx):
            self._save(ctx)
            self._report("checkpoint", ctx, {})

    def resume(self, ctx: Context) -> None:
        """Go on after the last checkpoint, if there is one."""
        found = Checkpoints(ctx=ctx).last()
        if found is None:
            return
        tensors, record = found
        self.history = [Trial(**trial) for trial in record["history"]]
        self.refused = [Trial(**trial) for trial in record["refused"]]
        self.rng.set_state(tensors.pop("draws"))
        set_rng_states(tensors)
        self.resumed_at = len(self.history)
        self._report(f"resumed at candidate {len(self.history)}", ctx, {})

    def _due(self, ctx: Context) -> bool:
        steps = ctx.checkpoint_steps
        if steps is not None and len(self.history) % steps == 0:
            return True
        return time.monotonic() - self.saved >= ctx.checkpoint_seconds

    def _save(self, ctx: Context) -> None:
        record = {
            "history": [asdict(trial) for trial in self.history],
            "refused": [asdict(trial) for trial in self.refused],
        }
        tensors = {"draws": self.rng.get_state(), **rng_states()}
        Checkpoints(ctx=ctx).save(len(self.history), tensors, record)
        self.saved = time.monotonic()

    def _report(self, text: str, ctx: Context, scores: Mapping[str, float]) -> None:
        done = len(self.history)
        ctx.observe(Event(stage=ctx.stage, text=text, done=done, total=self.total, scores=scores))


def _table(history: list[Trial]) -> dict[str, Any]:  # Any: a column
    columns: dict[str, Any] = {"encoding": [trial.key for trial in history]}
    scores = torch.tensor([trial.score for trial in history], dtype=torch.float64)
    columns["score"] = ranked_last(scores)
    for name in history[0].cost:
        columns[name] = torch.tensor([trial.cost[name] for trial in history], dtype=torch.float64)
    return columns
