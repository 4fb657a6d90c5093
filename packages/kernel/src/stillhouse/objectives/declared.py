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
from typing import Annotated, Any

from jaxtyping import Float
from torch import Tensor

from stillhouse.errors import BadRecipe, BadSetting
from stillhouse.objectives.limits import Limit, Range, limits

Loss = Callable[..., Tensor]


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
    for name, value in hyperparameters.items():
        (_check_once if type(value) in PLAIN else _check)(loss, name, value)


def _check(loss: Loss, name: str, value: Any) -> None:  # Any: a JSON value
    allowed = _declared(loss).get(name, ())
    if allowed and not any(limit.holds(value) for limit in allowed):
        wanted = " or ".join(limit.text(value) for limit in allowed)
        raise BadSetting(f"{name} must be {wanted} (got {value!r})")


PLAIN = frozenset({bool, int, float, str, type(None)})
# each call of a loss reads the same values again
_check_once = functools.lru_cache(maxsize=1024, typed=True)(_check)


def signature(loss: Loss) -> inspect.Signature:
    """Parameters with their annotations as types. Raises BadRecipe where these cannot be read."""
    try:
        return inspect.signature(loss, eval_str=True)
    except ValueError as error:
        raise BadRecipe(
            f"{loss.__name__}: a function of C, whose parameters cannot be read; call it in a "
            "module-level function of Python"
        ) from error
    except (NameError, AttributeError, SyntaxError, TypeError) as error:
        raise BadRecipe(
            f"{loss}: its annotations cannot be read ({error}); import their types at run time"
        ) from error


@functools.cache
def _declared(loss: Loss) -> Mapping[str, tuple[Limit, ...]]:
    return {name: limits(p.annotation) for name, p in signature(loss).parameters.items()}


def _beside(annotation: Any) -> tuple[Any, ...]:  # Any: a type; what is written beside it
    if typing.get_origin(annotation) is Annotated:
        return typing.get_args(annotation)[1:]
    return ()
