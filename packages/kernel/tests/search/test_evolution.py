"""Random, exhaustive and evolutionary search: who becomes a parent, budgets, spaces used up."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from stillhouse.artifact import Model
from stillhouse.data.shards import load_data
from stillhouse.errors import BadSetting
from stillhouse.recipe import Context, Event, Observer, silent
from stillhouse.search import (
    AgingEvolution,
    Encoding,
    Exhaustive,
    Listed,
    RandomSearch,
    SearchSpace,
    Strategy,
    Trial,
)
from stillhouse.search.proxies import parameters
from stillhouse.stages import Search
from stillhouse.work import Work

from .networks import Small


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Words of `count` bits; a mutation flips one; the cost is the number of ones."""

    count: int = 4

    def __len__(self) -> int:
        return 2**self.count

    def at(self, index: int) -> Encoding:
        return {"bits": [index >> i & 1 for i in range(self.count)]}

    def sample(self, rng: Generator) -> Encoding:
        return {"bits": torch.randint(2, (self.count,), generator=rng).tolist()}

    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding:
        place = int(torch.randint(self.count, (), generator=rng))
        return {"bits": [bit ^ (i == place) for i, bit in enumerate(encoding["bits"])]}

    def cost(self, encoding: Encoding) -> Mapping[str, float]:
        return {"ones": float(sum(encoding["bits"]))}

    def model(self, encoding: Encoding) -> Model:
        return Model(build=Small, kwargs={"widths": [1, 1 + sum(encoding["bits"])]})


@dataclass(frozen=True, kw_only=True)
class Unlisted:
    """`Bits` without numbers."""

    bits: Bits = Bits()

    def sample(self, rng: Generator) -> Encoding:
        return self.bits.sample(rng)

    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding:
        return self.bits.mutate(encoding, rng)

    def cost(self, encoding: Encoding) -> Mapping[str, float]:
        return self.bits.cost(encoding)

    def model(self, encoding: Encoding) -> Model:
        return self.bits.model(encoding)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def trial(*bits: int, score: float) -> Trial:
    return Trial(encoding={"bits": list(bits)}, cost={}, score=score)


def ones_found(strategy: Strategy, space: SearchSpace, trials: int, seed: int) -> list[Trial]:
    """A search whose score is the number of ones."""
    history: list[Trial] = []
    draws = rng(seed)
    while len(history) < trials:
        encoding = strategy.propose(space, history, draws)
        if encoding is None:
            break
        score = float(sum(encoding["bits"]))
        history.append(Trial(encoding=encoding, cost={}, score=score))
    return history


STRATEGIES = [
    RandomSearch(),
    Exhaustive(),
    AgingEvolution(population=4, sample=2, elite=1),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_each_architecture_is_tried_once_then_the_space_is_used_up(strategy: Strategy):
    found = ones_found(strategy, Bits(), 99, seed=0)
    assert len(found) == len({t.key for t in found}) == 16


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: type(s).__name__)
def test_a_search_is_a_function_of_its_seed(strategy: Strategy):
    keys = [t.key for t in ones_found(strategy, Bits(count=8), 30, seed=3)]
    assert keys == [t.key for t in ones_found(strategy, Bits(count=8), 30, seed=3)]


def test_exhaustive_goes_by_number():
    found = ones_found(Exhaustive(), Bits(count=2), 99, seed=0)
    assert [t.encoding["bits"] for t in found] == [[0, 0], [1, 0], [0, 1], [1, 1]]


def test_exhaustive_needs_a_listed_space():
    assert isinstance(Bits(), Listed)
    assert not isinstance(Unlisted(), Listed)
    with pytest.raises(BadSetting, match=r"needs a space with len\(\) and at\(\); Unlisted has"):
        Exhaustive().propose(Unlisted(), [], rng())


def test_the_first_candidates_of_an_evolution_are_the_random_ones():
    space, evolution = Bits(count=12), AgingEvolution(population=10, sample=3, elite=1)
    first = [t.key for t in ones_found(evolution, space, 14, seed=5)]
    random = [t.key for t in ones_found(RandomSearch(), space, 14, seed=5)]
    assert first[:10] == random[:10]
    assert first[10:] != random[10:]


def parents_of(children: list[Encoding], history: list[Trial]) -> Counter[tuple[int, ...]]:
    """Members one flip away from each child."""
    near = Counter[tuple[int, ...]]()
    for child in children:
        for t in history:
            gap = sum(a != b for a, b in zip(child["bits"], t.encoding["bits"], strict=True))
            if gap == 1:
                near[tuple(t.encoding["bits"])] += 1
    return near


# no two are within two flips of each other, so that a child tells its parent
HISTORY = [
    trial(1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, score=9.0),  # the best, and the oldest
    trial(0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, score=1.0),
    trial(0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, score=4.0),
    trial(0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, score=3.0),
    trial(1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, score=2.0),
]


def children(evolution: AgingEvolution, history: list[Trial], count: int = 60) -> list[Encoding]:
    found = [evolution.propose(Bits(count=12), history, rng(seed)) for seed in range(count)]
    return [child for child in found if child is not None]


def test_a_parent_is_among_the_best_of_the_youngest():
    near = parents_of(children(AgingEvolution(population=4, sample=4, elite=2), HISTORY), HISTORY)
    third, fourth = (tuple(HISTORY[i].encoding["bits"]) for i in (2, 3))
    assert set(near) == {third, fourth}
    assert sum(near.values()) == 60
    assert min(near.values()) > 15  # either is drawn half the time


def test_a_parent_is_the_best_of_a_random_sample():
    # two of four: the best of the four is in half the samples, the worst is never a parent
    near = parents_of(children(AgingEvolution(population=4, sample=2, elite=1), HISTORY), HISTORY)
    shares = [near[tuple(t.encoding["bits"])] / 60 for t in HISTORY]
    assert shares[0] == shares[1] == 0
    assert shares[2] == pytest.approx(1 / 2, abs=0.2)
    assert shares[3] == pytest.approx(1 / 3, abs=0.2)
    assert shares[4] == pytest.approx(1 / 6, abs=0.15)


def test_the_refused_are_no_parents():
    refused = trial(1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, score=-math.inf)
    evolution = AgingEvolution(population=4, sample=4, elite=4)
    near = parents_of(children(evolution, [*HISTORY, refused]), [*HISTORY, refused])
    assert set(near) == {tuple(t.encoding["bits"]) for t in HISTORY[1:]}


def test_evolution_climbs_where_random_draws_do_not():
    best = {
        type(s).__name__: [
            max(t.score for t in ones_found(s, Bits(count=40), 200, seed)) for seed in range(3)
        ]
        for s in (RandomSearch(), AgingEvolution(population=20, sample=8, elite=2))
    }
    assert min(best["AgingEvolution"]) >= max(best["RandomSearch"]) + 4


@dataclass(frozen=True, kw_only=True)
class Largest:
    def __call__(self, candidate: Model, inputs: Mapping[str, Any], *, work: Work) -> float:
        images = torch.zeros(1, 3, 8, 8)
        return parameters(candidate.new(), images, torch.zeros(1))


@pytest.mark.parametrize(
    "strategy",
    [AgingEvolution(population=6, sample=3, elite=1), Exhaustive()],
    ids=lambda s: type(s).__name__,
)
def test_children_are_held_to_the_budget(strategy: Strategy, tmp_path: Path):
    stage = Search(
        name="s",
        space=Bits(count=6),
        score=Largest(),
        budget={"ones": 4},
        trials=50,
        inputs={},
        strategy=strategy,
    )
    out = stage.run(
        {}, Context(stage="s", out=tmp_path, checkpoints=tmp_path, caches=tmp_path)
    ).outputs
    trials = load_data(out["trials"].path)
    assert len(trials) == 50  # of the 57 that fit: 64 - 6 - 1
    assert max(trials.columns["ones"].tolist()) == 4
    best = json.loads((out["model"].path / "model.json").read_text())
    assert best["kwargs"] == {"widths": [1, 5]}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A score from the weights of the candidate, which the global generator draws."""

    def __call__(self, candidate: Model, inputs: Mapping[str, Any], *, work: Work) -> float:
        drawn = sum(p.sum().item() for p in candidate.new().parameters())
        return drawn + float(torch.rand((), generator=work.rng))


class Killed(BaseException):
    """What ends the search in the middle."""


@pytest.mark.parametrize(
    "strategy",
    [AgingEvolution(population=6, sample=3, elite=1), RandomSearch()],
    ids=lambda s: type(s).__name__,
)
def test_a_killed_search_goes_on_to_the_same_bits(strategy: Strategy, tmp_path: Path):
    stage = Search(
        name="s",
        space=Bits(count=6),
        score=Drawn(),
        budget={"ones": 4},
        trials=30,
        inputs={},
        strategy=strategy,
    )
    told: list[Event] = []

    def dies(event: Event) -> None:
        if event.text == "checkpoint" and event.done == 14:
            raise Killed

    def run(place: Path, observe: Observer) -> dict[str, bytes]:
        out = place / "out"
        out.mkdir(parents=True, exist_ok=True)
        ctx = Context(
            stage="s",
            out=out,
            checkpoints=place / "checkpoints",
            caches=place,
            observe=observe,
            checkpoint_steps=7,
        )
        stage.run({}, ctx)
        return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.*")}

    whole = run(tmp_path / "whole", silent)
    with pytest.raises(Killed):
        run(tmp_path / "killed", dies)
    assert run(tmp_path / "killed", told.append) == whole
    assert told[0].text == "resumed at candidate 14"
    assert [e.done for e in told if not e.text] == list(range(15, 31))  # none is scored again


@pytest.mark.parametrize(
    ("sizes", "shown"), [((4, 2, 3), "3, 2, 4"), ((4, 5, 1), "1, 5, 4"), ((4, 2, 0), "0, 2, 4")]
)
def test_sizes_that_do_not_nest_say_so(sizes: tuple[int, int, int], shown: str):
    population, sample, elite = sizes
    with pytest.raises(BadSetting, match=rf"1 <= elite <= sample <= population \(got {shown}\)"):
        AgingEvolution(population=population, sample=sample, elite=elite)
