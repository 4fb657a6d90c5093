"""A slice of a space: its architectures of about one cost, so that a score explains more than
size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Generator

from stillhouse.artifact import Model
from stillhouse.errors import BadSetting, UnknownName
from stillhouse.search.space import Encoding, SearchSpace, text_of


@dataclass(frozen=True, kw_only=True)
class Slice:
    """The architectures of `space` with low <= `cost` <= high.

    A draw is repeated until it is inside; a mutation walks on from its last step until it is inside
    again and another architecture. Either gives up after `patience`: a draw with BadSetting, a
    mutation with a draw.
    """

    space: SearchSpace
    name: str  # of the cost
    low: float
    high: float
    patience: int = 1000

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise BadSetting(f"a slice needs low <= high (got {self.low} and {self.high})")

    def sample(self, rng: Generator) -> Encoding:
        for _ in range(self.patience):
            encoding = self.space.sample(rng)
            if self._inside(encoding):
                return encoding
        raise BadSetting(
            f"none of {self.patience} draws has {self.name} from {self.low} to {self.high}; "
            "widen the slice"
        )

    def mutate(self, encoding: Encoding, rng: Generator) -> Encoding:
        child = encoding
        for _ in range(self.patience):
            child = self.space.mutate(child, rng)
            if text_of(child) != text_of(encoding) and self._inside(child):
                return child
        return self.sample(rng)

    def cost(self, encoding: Encoding) -> Mapping[str, float]:
        return self.space.cost(encoding)

    def model(self, encoding: Encoding) -> Model:
        return self.space.model(encoding)

    def _inside(self, encoding: Encoding) -> bool:
        cost = self.space.cost(encoding)
        if self.name not in cost:
            raise UnknownName("cost", self.name, cost, where="slice of a space")
        return self.low <= cost[self.name] <= self.high
