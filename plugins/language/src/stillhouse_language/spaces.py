"""Sub-spaces of a teacher's subnets, in whole numbers, and several as one space to search."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Generator

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting, UnknownName
from stillhouse.search.space import Encoding
from stillhouse_language.architecture import Architecture, macs, parameter_count
from stillhouse_language.encoder import Encoder

SPACE = "space"  # of an encoding: the name of its sub-space


@dataclass(frozen=True, kw_only=True)
class SubSpace:
    """All subnets of `full` with one of `layers`, `widths`, `ratios` (inner over width) and `heads`
    each, as a SuperLM shares its weights among. Raises BadSetting for what is larger than `full`,
    and for a ratio that is no whole number of units at some width.
    """

    full: Architecture
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    ratios: tuple[float, ...]
    heads: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("layers", "widths", "ratios", "heads"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise BadSetting(f"sub-space: name each of {name} once, and at least one")
        for width, ratio in itertools.product(self.widths, self.ratios):
            if width * ratio != int(width * ratio) or ratio <= 0:
                raise BadSetting(
                    f"sub-space: {ratio:g} x {width} units are no whole number; choose a width "
                    "that gives one"
                )
        _ = self.architectures  # none is larger than `full`

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """From the smallest to the largest by the official estimate of parameters; ties in the
        order of (layers, width, inner, heads).
        """
        return _architectures(self.full, self.layers, self.widths, self.ratios, self.heads)

    @property
    def largest(self) -> Architecture:
        return self.architectures[-1]

    @property
    def smallest(self) -> Architecture:
        return self.architectures[0]

    @property
    def stored(self) -> Architecture:
        """What a SuperLM holds: the largest width, feed-forward layer and number of heads, and all
        of the teacher's layers, for a shallow subnet keeps one that a deeper one leaves out.
        """
        a = self.largest
        return self.full.cut(layers=self.full.layers, width=a.width, inner=a.inner, heads=a.heads)


@lru_cache(maxsize=64)
def _architectures(
    full: Architecture,
    layers: tuple[int, ...],
    widths: tuple[int, ...],
    ratios: tuple[float, ...],
    heads: tuple[int, ...],
) -> tuple[Architecture, ...]:
    """Settings read them again and again."""
    every = [
        full.cut(layers=depth, width=d, inner=int(d * r), heads=h)
        for depth, d, r, h in itertools.product(layers, widths, ratios, heads)
    ]
    return tuple(sorted(every, key=_by_size))


def _by_size(a: Architecture) -> tuple[int, ...]:
    return parameter_count(a, kind="paper"), a.layers, a.width, a.inner, a.heads


@dataclass(frozen=True, kw_only=True)
class Spaces:
    """The subnets of several sub-spaces, by name, as the kernel's search knows a space. An encoding
    names its sub-space, of whose SuperLM the candidate is a subnet. The costs are "parameters" and
    "macs" of a sample of `tokens`, true counts.
    """

    spaces: Mapping[str, SubSpace]
    tokens: int

    @cached_property
    def every(self) -> tuple[tuple[str, Architecture], ...]:
        """All subnets with their sub-space."""
        return tuple(
            (name, each) for name, space in self.spaces.items() for each in space.architectures
        )

    def __len__(self) -> int:
        return len(self.every)

    def at(self, index: int) -> Encoding:
        return encoding_of(*self.every[index])

    def sample(self, rng: Generator) -> Encoding:
        return self.at(int(torch.randint(len(self), (), generator=rng)))

    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding:
        """One of its numbers drawn anew, within its sub-space."""
        name, a = decoded(self, encoding)
        space = self.spaces[name]
        near = [b for b in space.architectures if _differences(a, b) == 1]
        return encoding_of(
            name, near[int(torch.randint(len(near), (), generator=rng))] if near else a
        )

    def cost(self, encoding: Encoding) -> Mapping[str, float]:
        return self.costs(decoded(self, encoding)[1])

    def costs(self, a: Architecture) -> dict[str, float]:
        """The costs of an architecture by name."""
        return {"parameters": parameter_count(a), "macs": macs(a, tokens=self.tokens)}

    def model(self, encoding: Encoding) -> Model:
        name, a = decoded(self, encoding)
        return Model(build=candidate, kwargs={"architecture": a.record(), "space": name})

    def check_budget(self, budget: Mapping[str, float]) -> None:
        """Raises BadSetting for a budget that no subnet fits, UnknownName for no cost's name."""
        costs = [self.costs(a) for _, a in self.every]
        for name, most in budget.items():
            if name not in costs[0]:
                raise UnknownName("cost", name, costs[0], where="budget")
            least = min(cost[name] for cost in costs)
            if most < least:
                raise BadSetting(
                    f"budget: {most:,.0f} {name} are under the smallest subnet's {least:,.0f}; "
                    "raise it, or add a smaller sub-space"
                )


def candidate(
    architecture: Mapping[str, Any],  # Any: JSON values
    space: str,  # noqa: ARG001  that of the SuperLM it is a subnet of
) -> Encoder:
    """A candidate of a search as a network of its own, of fresh weights."""
    return Encoder(architecture)


def encoding_of(name: str, a: Architecture) -> Encoding:
    return {
        SPACE: name, "layers": a.layers, "width": a.width, "inner": a.inner, "heads": a.heads,
    }  # fmt: skip


def decoded(spaces: Spaces, encoding: Encoding) -> tuple[str, Architecture]:
    """The sub-space and architecture of an encoding; raises UnknownName."""
    numbers: dict[str, Any] = dict(encoding)
    name = numbers.pop(SPACE)
    if name not in spaces.spaces:
        raise UnknownName("sub-space", str(name), spaces.spaces)
    return name, spaces.spaces[name].full.cut(**numbers)


def _differences(a: Architecture, b: Architecture) -> int:
    """In how many of layers, width, ratio and heads two differ."""
    ratios = a.inner * b.width != b.inner * a.width
    return (a.layers != b.layers) + (a.width != b.width) + ratios + (a.heads != b.heads)
