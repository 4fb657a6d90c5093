"""What a search without training saves: its time against that of training each candidate."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, nn

from stillhouse.artifact import Built, Model
from stillhouse.data.data import Data, RowData, Rows
from stillhouse.errors import BadData, BadSetting
from stillhouse.leftovers import temporary
from stillhouse.metrics.metric import Metric
from stillhouse.metrics.scores import Score
from stillhouse.objectives.inputs import named
from stillhouse.objectives.objective import Models
from stillhouse.recipe import Context
from stillhouse.search.scores import DisWOT
from stillhouse.search.space import SearchSpace
from stillhouse.search.trained import DATA, Trained
from stillhouse.training import mix
from stillhouse.work import Work

SCORED = "diswot"  # the line of the score without training
# what a seed is for, beside a candidate's number
CANDIDATE, PREPARE = 1, 2


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Two ways to choose among `trials` candidates of `space`.

    `schedules` names trainings by their number of steps: the lines of the comparison. `whole`, one
    of them, is trained to its end here; others are computed from seconds a step, and their names
    should say so.
    """

    space: SearchSpace
    score: DisWOT
    trained: Trained
    trials: int
    schedules: Mapping[str, int]
    whole: str | None = None

    def __post_init__(self) -> None:
        if self.trials < 1 or not self.schedules:
            raise BadSetting(
                "a contest of searches needs trials >= 1 and a schedule "
                f"(got {self.trials} and {len(self.schedules)})"
            )
        if self.whole is not None:
            steps = named(self.schedules, self.whole, what="schedule", where="contest of searches")
            if steps != self.trained.steps:
                raise BadSetting(
                    f"'{self.whole}' is trained here: its {steps} steps must be the score's "
                    f"{self.trained.steps}"
                )


@dataclass(frozen=True, kw_only=True)
class SearchWork(Metric):
    """images, a row a line: training images that each candidate sees: forward alone for DisWOT,
    whose gradient of the head needs no backward pass; forward and backward in a training.
    """

    contest: Contest

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        contest = self.contest
        lines = {SCORED: contest.score.inits * contest.score.batch} | {
            name: steps * contest.trained.batch for name, steps in contest.schedules.items()
        }
        return {(line, "images"): float(count) for line, count in lines.items()}

    def scores(self) -> Sequence[Score]:
        return (Score(name="images", better="neither"),)


@dataclass(frozen=True, kw_only=True)
class SearchTime(Metric):
    """Seconds, measured here and now on the role "teacher" and the data; not reproducible.

    By line, candidate_seconds: of one candidate more, median of `candidates` draws of the space.
    search_seconds: of `trials` candidates and what is prepared once (DisWOT: the teacher's
    view, the reference candidates; training: the teacher's stored outputs, unless `whole` is None,
    where they are left out). speedup: that over DisWOT's. Trainings that are not `whole` are
    computed: seconds a step of `timed_steps` steps, times their steps.
    """

    contest: Contest
    candidates: int = 3
    timed_steps: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.timed_steps < 2:
            raise BadSetting(
                "search time needs candidates >= 1 and timed_steps >= 2 "
                f"(got {self.candidates} and {self.timed_steps})"
            )

    def __call__(
        self, models: Models, data: Data, *, work: Work
    ) -> Mapping[tuple[str, str], float]:
        rng = Generator().manual_seed(mix(self.seed, CANDIDATE))
        space = self.contest.space
        drawn = [space.model(space.sample(rng)) for _ in range(self.candidates)]
        teacher = named(models, "teacher", what="role", where="search time")
        with temporary() as folder:
            ctx = _context(folder, next(teacher.parameters()).device)
            once, each = self._scored(teacher, data, drawn, ctx)
            found = {SCORED: (each, once + self.contest.trials * each)}
            found |= self._trained(teacher, data, drawn, ctx)
        base = found[SCORED][1]
        return {
            (line, name): value
            for line, (one, total) in found.items()
            for name, value in (
                ("candidate_seconds", one),
                ("search_seconds", total),
                ("speedup", total / base),
            )
        }

    def scores(self) -> Sequence[Score]:
        return (
            Score(name="candidate_seconds", better="lower", unit="s", label="Candidate"),
            Score(name="search_seconds", better="lower", unit="s", label="Search"),
            Score(name="speedup", better="higher"),
        )

    def _scored(
        self, teacher: nn.Module, data: Data, drawn: list[Model], ctx: Context
    ) -> tuple[float, float]:
        """Seconds once, and seconds a candidate."""
        inputs = {"teacher": _built(teacher), "data": data}
        work = Work.of(ctx, self.seed, PREPARE)
        start = time.perf_counter()
        score = self.contest.score.prepare(self.contest.space, inputs, work=work)
        once = time.perf_counter() - start
        seconds: list[float] = []
        for candidate in drawn:
            start = time.perf_counter()
            score(candidate, inputs, work=work)
            seconds.append(time.perf_counter() - start)
        return once, statistics.median_high(seconds)

    def _trained(
        self, teacher: nn.Module, data: Data, drawn: list[Model], ctx: Context
    ) -> dict[str, tuple[float, float]]:
        """Each schedule: seconds a candidate, and seconds of the whole search."""
        contest, found = self.contest, dict[str, tuple[float, float]]()
        once, whole, step = 0.0, 0.0, 0.0
        if contest.whole is not None:
            once, whole = self._train(contest.trained, teacher, data, drawn, ctx)
            step = whole / contest.trained.steps
        else:
            step = self._step(teacher, data, drawn, ctx)
        for name, steps in contest.schedules.items():
            each = whole if name == contest.whole else step * steps
            found[name] = each, once + contest.trials * each
        return found

    def _step(self, teacher: nn.Module, data: Data, drawn: list[Model], ctx: Context) -> float:
        """Seconds a step: what more steps take longer, so that a training's start is left out."""
        score = self.contest.trained
        long, short = replace(score, steps=self.timed_steps), replace(score, steps=1)
        if not isinstance(data, RowData):
            raise BadData("search time needs data in memory or in shards")
        few = Rows(data, torch.arange(min(len(data), self.timed_steps * score.batch)))
        self._train(short, teacher, few, drawn[:1], ctx)  # a first training is slower
        _, begun = self._train(short, teacher, few, drawn, ctx)
        _, done = self._train(long, teacher, few, drawn, ctx)
        return max(0.0, done - begun) / (self.timed_steps - 1)

    def _train(
        self, score: Trained, teacher: nn.Module, data: Data, drawn: list[Model], ctx: Context
    ) -> tuple[float, float]:
        """Seconds to prepare, and seconds a training."""
        inputs = {"teacher": _built(teacher), DATA: data}
        work = Work.of(ctx, self.seed, PREPARE)
        start = time.perf_counter()
        prepared = score.prepare(self.contest.space, inputs, work=work)
        once = time.perf_counter() - start
        seconds: list[float] = []
        for candidate in drawn:
            start = time.perf_counter()
            prepared.train(candidate, data, rng=work.rng)
            seconds.append(time.perf_counter() - start)
        return once, statistics.median_high(seconds)


def _context(folder: Path, device: torch.device) -> Context:
    """A stage of its own, whose stored outputs are gone with the folder."""
    return Context(
        stage="search-time",
        out=folder,
        checkpoints=folder / "checkpoints",
        caches=folder / "caches",
        device=str(device),
        digests={"teacher": "given", DATA: "given"},
    )


def _built(module: nn.Module) -> Built:
    """The module as a port gives it; nobody builds it again."""
    return Built(spec=Model(build=type(module)), module=module)
