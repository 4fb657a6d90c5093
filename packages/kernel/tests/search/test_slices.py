"""A slice of a space: what is inside, how it is reached, messages."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Generator

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting, UnknownName
from stillhouse.search import AgingEvolution, Encoding, Slice, Trial

from .networks import Small


@dataclass(frozen=True, kw_only=True)
class Ring:
    """0 to 11 in a ring; a mutation is a step forward; the cost is the number modulo 4."""

    def sample(self, rng: Generator) -> Encoding:
        return {"at": int(torch.randint(12, (), generator=rng))}

    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding:
        return {"at": (encoding["at"] + 1) % 12}

    def cost(self, encoding: Encoding) -> Mapping[str, float]:
        return {"rest": float(encoding["at"] % 4)}

    def model(self, encoding: Encoding) -> Model:
        return Model(build=Small, kwargs={"widths": [1 + encoding["at"], 2]})


def ring(low: float, high: float, patience: int = 1000) -> Slice:
    return Slice(space=Ring(), name="rest", low=low, high=high, patience=patience)


def test_a_draw_is_inside():
    found = {ring(1, 2).sample(Generator().manual_seed(seed))["at"] for seed in range(99)}
    assert found == {1, 2, 5, 6, 9, 10}


def test_a_mutation_walks_until_it_is_inside_again():
    rng = Generator().manual_seed(0)
    assert ring(1, 1).mutate({"at": 5}, rng) == {"at": 9}
    assert ring(1, 2).mutate({"at": 5}, rng) == {"at": 6}
    assert ring(1, 1).mutate({"at": 9}, rng) == {"at": 1}
    # three steps are too few to come to 9: a draw instead, which may be any of 1, 5, 9
    rngs = [Generator().manual_seed(seed) for seed in range(40)]
    found = {ring(1, 1, patience=3).mutate({"at": 5}, r)["at"] for r in rngs if _luck(r)}
    assert found == {1, 5, 9}


def _luck(rng: Generator) -> bool:
    """Whether one of the generator's next three draws is inside; the generator stays where it is."""
    ahead = Generator()
    ahead.set_state(rng.get_state())
    return any(Ring().sample(ahead)["at"] % 4 == 1 for _ in range(3))


def test_a_slice_is_a_space_with_the_costs_and_models_of_the_whole():
    assert ring(1, 2).cost({"at": 6}) == {"rest": 2}
    assert ring(1, 2).model({"at": 6}).kwargs == {"widths": [7, 2]}
    history: list[Trial] = []
    rng = Generator().manual_seed(0)
    evolution = AgingEvolution(population=3, sample=2, elite=1)
    while (encoding := evolution.propose(ring(1, 2), history, rng)) is not None:
        history.append(Trial(encoding=encoding, cost={}, score=float(encoding["at"])))
    assert sorted(t.encoding["at"] for t in history) == [1, 2, 5, 6, 9, 10]


def test_a_wrong_slice_says_so():
    with pytest.raises(BadSetting, match=r"a slice needs low <= high \(got 2 and 1\)"):
        ring(2, 1)
    with pytest.raises(
        BadSetting, match="none of 1000 draws has rest from 4 to 9; widen the slice"
    ):
        ring(4, 9).sample(Generator().manual_seed(0))
    with pytest.raises(UnknownName, match="slice of a space: unknown cost 'macs'. Valid: rest"):
        Slice(space=Ring(), name="macs", low=0, high=1).sample(Generator().manual_seed(0))
