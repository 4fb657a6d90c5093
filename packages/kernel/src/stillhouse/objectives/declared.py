"""What a loss declares in its signature: ranges of hyperparameters, and whether it is a mean over
samples.

A loss is a module-level function of tensors and keyword-only hyperparameters. Its annotations say
what else a recipe must know of it:

    def kd_loss(student: ..., teacher: ..., *, temperature: Positive) -> SampleMean:
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from jaxtyping import Float
from torch import Tensor

from stillhouse.errors import BadRecipe, BadSetting

Loss = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a number, or of each number of a tuple, which then has at least one."""

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        bounds = {">": self.above, ">=": self.least, "<": self.below, "<=": self.most}
        return " and ".join(f"{sign} {b:g}" for sign, b in bounds.items() if b is not None)

    def holds(self, value: object) -> bool:
        """Whether the value is inside; NaN never is."""
        if isinstance(value, tuple | list):
            return bool(value) and all(map(self.holds, value))  # pyright: ignore[reportUnknownArgumentType]
        return (
            isinstance(value, int | float)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )


@dataclass(frozen=True, kw_only=True)
class OneOf:
    """The choices of a Literal."""

    choices: tuple[Any, ...]  # Any: what a Literal may hold

    def __str__(self) -> str:
        return f"one of {', '.join(map(str, self.choices))}"

    def holds(self, value: object) -> bool:
        return value in self.choices


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(least=0)]
NotPositive = Annotated[float, Range(most=0)]
Fraction = Annotated[float, Range(least=0, below=1)]
Share = Annotated[float, Range(above=0, below=1)]
Count = Annotated[int, Range(least=1)]

MEAN = "mean over the samples of a batch"
# what a loss returns whose value over a batch is the mean of its values over equal micro-batches
SampleMean = Annotated[Float[Tensor, ""], MEAN]


def is_sample_mean(loss: Loss) -> bool:
    """Whether a loss declares that it returns a `SampleMean`."""
    return MEAN in _beside(signature(loss).return_annotation)


def check_declared(loss: Loss, /, **hyperparameters: Any) -> None:  # Any: JSON values
    """Raise BadSetting where a hyperparameter is none that the loss declares."""
    declared = _declared(loss)
    for name, value in hyperparameters.items():
        for limit in declared.get(name, ()):
            if not limit.holds(value):
                several = "one or more numbers " if isinstance(value, tuple | list) else ""
                raise BadSetting(f"{name} must be {several}{limit} (got {value!r})")


def signature(loss: Loss) -> inspect.Signature:
    """Parameters with their annotations as types. Raises BadRecipe where these cannot be read."""
    try:
        return inspect.signature(loss, eval_str=True)
    except NameError as error:
        raise BadRecipe(
            f"{loss}: its annotations cannot be read ({error}); import their types at run time"
        ) from error


@functools.cache  # each call of a loss asks
def _declared(loss: Loss) -> Mapping[str, tuple[Range | OneOf, ...]]:
    return {name: _limits(p.annotation) for name, p in signature(loss).parameters.items()}


def _limits(annotation: Any) -> tuple[Range | OneOf, ...]:  # Any: a type
    if typing.get_origin(annotation) is Literal:
        return (OneOf(choices=typing.get_args(annotation)),)
    return tuple(each for each in _beside(annotation) if isinstance(each, Range))


def _beside(annotation: Any) -> tuple[Any, ...]:  # Any: a type; what is written beside it
    if typing.get_origin(annotation) is Annotated:
        return typing.get_args(annotation)[1:]
    return ()
