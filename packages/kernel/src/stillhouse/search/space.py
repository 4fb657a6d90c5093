"""What a search works on: a space of architectures by encoding, its trials, a strategy."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from torch import Generator

from stillhouse.artifact import Model

Encoding = Mapping[str, Any]  # Any: JSON values; one architecture of a space


@runtime_checkable
class SearchSpace(Protocol):
    """Architectures by encoding; a frozen dataclass."""

    def sample(self, rng: Generator) -> Encoding: ...
    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding: ...
    def cost(self, encoding: Encoding) -> Mapping[str, float]: ...
    def model(self, encoding: Encoding) -> Model: ...


@runtime_checkable
class Listed(SearchSpace, Protocol):
    """A space whose architectures have numbers: from 0 to len - 1, each architecture once."""

    def __len__(self) -> int: ...
    def at(self, index: int) -> Encoding: ...


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A scored candidate; one refused for its cost has the score -inf."""

    encoding: Encoding
    cost: Mapping[str, float]
    score: float

    @cached_property
    def key(self) -> str:
        return text_of(self.encoding)


@runtime_checkable
class Strategy(Protocol):
    """Which candidate comes next; None ends a search whose space is used up.

    `history` holds every candidate proposed so far: those scored, in their order, then those
    refused. Implementations are frozen dataclasses without a state of their own.
    """

    def propose(
        self, space: SearchSpace, history: list[Trial], rng: Generator
    ) -> Encoding | None: ...


def text_of(encoding: Encoding) -> str:
    """An encoding as text: two are one architecture where the texts are equal."""
    return json.dumps(encoding, sort_keys=True)
