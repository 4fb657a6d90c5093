"""A term: a loss function of named tensors, and its hyperparameters."""

import functools
import inspect
import numbers
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stillhouse.errors import BadRecipe, UnknownName
from stillhouse.objectives.declared import Loss, check_declared, is_sample_mean, signature

BATCH = "batch"
Reads = str | tuple[str, ...]  # a name, or the names of an argument that is several tensors


@dataclass(frozen=True, init=False)
class Term:
    """A loss of the tensors it reads, as `Term(kd_loss, "student.logits", "teacher.logits",
    temperature=4.0)`.

    `loss` is a module-level function: a recipe is hashed by its name. `reads` are its positional
    arguments: "<role>.<output>", or "batch.<column>"; a tuple of such names is one argument of
    several tensors, and tuples of one term pair up. The rest are its hyperparameters. Raises
    BadRecipe or BadSetting where the loss does not take them.
    """

    loss: Loss
    reads: tuple[Reads, ...]
    hyperparameters: Mapping[str, Any]  # Any: JSON values

    def __init__(self, loss: Loss, /, *reads: Reads, **hyperparameters: Any) -> None:
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "reads", reads)
        plain = {name: _plain(value) for name, value in hyperparameters.items()}
        object.__setattr__(self, "hyperparameters", plain)
        _check(self)

    def __call__(
        self, outputs: Mapping[str, Mapping[str, Tensor]], batch: Mapping[str, Tensor]
    ) -> Tensor:
        found: list[Tensor | tuple[Tensor, ...]] = []
        for places, several in self._places:
            tensors: list[Tensor] = []
            for owner, output in places:
                given = batch if owner == BATCH else outputs.get(owner)
                if given is None or output not in given:
                    raise _missing(outputs, batch, owner, output)
                tensors.append(given[output])
            found.append(tuple(tensors) if several else tensors[0])
        return self.loss(*found, **self.hyperparameters)

    @functools.cached_property  # read each step; no field, so neither equality nor a digest sees it
    def _places(self) -> tuple[tuple[tuple[tuple[str, str], ...], bool], ...]:
        """By argument: owner and output of each tensor, and whether they are a tuple."""
        return tuple(
            ((_split(read),), False) if isinstance(read, str) else (tuple(map(_split, read)), True)
            for read in self.reads
        )

    @property
    def names(self) -> tuple[str, ...]:
        """All that it reads, one name a tensor."""
        return tuple(
            name for read in self.reads for name in ((read,) if isinstance(read, str) else read)
        )

    @property
    def sample_mean(self) -> bool:
        """Whether its loss is a mean over samples, so that a batch may go in micro-batches."""
        return is_sample_mean(self.loss)


def owner_of(name: str) -> str:
    """The role of "<role>.<output>", "batch" of a column."""
    return name.partition(".")[0]


def check_name(name: object, *, where: str) -> None:
    """Raises BadRecipe unless a name is "<role>.<output>" or "batch.<column>"."""
    owner, _, output = name.partition(".") if isinstance(name, str) else ("", "", "")
    if not owner or not output:
        raise BadRecipe(
            f"{where}: reads {name!r}; say of what, as in 'student.logits' or 'batch.labels'"
        )


def outputs_of(owner: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """What the names read of a role, or of "batch", each once."""
    split = (name.partition(".") for name in names)
    return tuple(dict.fromkeys(output for role, _, output in split if role == owner))


def _check(term: Term) -> None:
    if not isinstance(term.loss, types.FunctionType | types.BuiltinFunctionType):
        raise BadRecipe(f"term: the loss must be a module-level function (got {term.loss!r})")
    where = f"term {term.loss.__name__}"
    if "<lambda>" in term.loss.__qualname__ or "<locals>" in term.loss.__qualname__:
        raise BadRecipe(
            f"{where}: a lambda or a function defined inside another cannot be hashed; move the "
            "loss to a module"
        )
    for read in term.reads:
        for name in read if isinstance(read, tuple) else (read,):
            check_name(name, where=where)
    counts = [len(read) for read in term.reads if not isinstance(read, str)]
    if counts and (0 in counts or len(set(counts)) > 1):
        raise BadRecipe(
            f"{where}: its tuples of names must pair up one to one "
            f"(got {' and '.join(map(str, counts))})"
        )
    found = signature(term.loss)
    known = _by_name(found, after=len(term.reads))
    for key in term.hyperparameters:
        if key not in known:
            raise UnknownName("hyperparameter", key, known, where=where)
    try:
        found.bind(*term.reads, **term.hyperparameters)
    except TypeError as error:
        raise BadRecipe(f"{where}: {error}") from error
    check_declared(term.loss, **term.hyperparameters)


def _plain(value: Any) -> Any:  # Any: JSON values, and numbers of NumPy, which no digest takes
    match value:
        case bool() | int() | float():
            return value
        case numbers.Integral():
            return int(value)
        case numbers.Real():
            return float(value)
        case tuple() | list():
            return type(value)(map(_plain, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        case _:
            return value


def _by_name(found: inspect.Signature, *, after: int) -> list[str]:
    """The parameters that are given by name, `after` so many tensors."""
    parameters = list(found.parameters.values())
    both = [p.name for p in parameters[after:] if p.kind is p.POSITIONAL_OR_KEYWORD]
    return both + [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]


def _split(name: str) -> tuple[str, str]:
    owner, _, output = name.partition(".")
    return owner, output


def _missing(
    outputs: Mapping[str, Mapping[str, Tensor]],
    batch: Mapping[str, Tensor],
    owner: str,
    output: str,
) -> UnknownName:
    if owner == BATCH:
        return UnknownName("column", output, batch, where=BATCH)
    if owner not in outputs:
        return UnknownName("role", owner, outputs, where="loss term")
    return UnknownName("output", output, outputs[owner], where=f"role '{owner}'")
