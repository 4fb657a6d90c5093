"""Strategies of a search: random, exhaustive, aging evolution.

The budget is not theirs: the search refuses each candidate over it, children as well as random
draws, and draws another.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from stillhouse.errors import BadSetting
from stillhouse.search.space import Encoding, Listed, SearchSpace, Trial, text_of


@dataclass(frozen=True, kw_only=True)
class RandomSearch:
    """Independent draws, each architecture at most once; gives up after `patience` draws that were
    all seen.
    """

    patience: int = 200

    def propose(self, space: SearchSpace, history: list[Trial], rng: Generator) -> Encoding | None:
        return _first_new((space.sample(rng) for _ in range(self.patience)), history)


@dataclass(frozen=True, kw_only=True)
class Exhaustive:
    """Every architecture of a listed space, by number."""

    def propose(self, space: SearchSpace, history: list[Trial], rng: Generator) -> Encoding | None:
        if not isinstance(space, Listed):
            raise BadSetting(
                f"an exhaustive search needs a space with len() and at(); "
                f"{type(space).__name__} has none. Use RandomSearch or AgingEvolution"
            )
        return space.at(len(history)) if len(history) < len(space) else None


@dataclass(frozen=True, kw_only=True)
class AgingEvolution:
    """Regularized evolution, Real et al. 2019 (arXiv 1802.01548), as DisWOT searches: a parent is
    drawn from the `elite` best of `sample` random members of the `population` youngest.

    The first `population` candidates are random. Defaults: the released DisWOT settings. Differs
    from that release: the elite are the best of the sample (its sort is ascending, which takes the
    worst), children are held to the budget, and no architecture is scored twice: after `patience`
    children that were all seen the next candidate is a random one.
    """

    population: int = 36
    sample: int = 8
    elite: int = 5
    patience: int = 200

    def __post_init__(self) -> None:
        if not 1 <= self.elite <= self.sample <= self.population:
            raise BadSetting(
                "aging evolution needs 1 <= elite <= sample <= population "
                f"(got {self.elite}, {self.sample}, {self.population})"
            )

    def propose(self, space: SearchSpace, history: list[Trial], rng: Generator) -> Encoding | None:
        scored = [trial for trial in history if trial.score > -math.inf]
        if len(scored) >= self.population:
            members = scored[-self.population :]
            children = (space.mutate(self._parent(members, rng), rng) for _ in range(self.patience))
            if (child := _first_new(children, history)) is not None:
                return child
        return RandomSearch(patience=self.patience).propose(space, history, rng)

    def _parent(self, members: Sequence[Trial], rng: Generator) -> Encoding:
        drawn: list[int] = torch.randperm(len(members), generator=rng)[: self.sample].tolist()
        best = sorted((members[i] for i in drawn), key=_score, reverse=True)
        return best[int(torch.randint(self.elite, (), generator=rng))].encoding


def _score(trial: Trial) -> float:
    return trial.score


def _first_new(draws: Iterable[Encoding], history: list[Trial]) -> Encoding | None:
    seen = {trial.key for trial in history}
    return next((encoding for encoding in draws if text_of(encoding) not in seen), None)
