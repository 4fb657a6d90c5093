"""What every term needs: tensors by role and output, checked ranges, full precision."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.objectives.limits import Number, Range

Value = TypeVar("Value")


def named(given: Mapping[str, Value], name: str, *, what: str, where: str) -> Value:
    """The entry `name`; raises UnknownName with the nearest one there is."""
    if name not in given:
        raise UnknownName(what, name, given, where=where)
    return given[name]


def pick(outputs: Mapping[str, Mapping[str, Tensor]], role: str, output: str) -> Tensor:
    """Output `output` of `role`; raises UnknownName for either."""
    given = named(outputs, role, what="role", where="loss term")
    return named(given, output, what="output", where=f"role '{role}'")


def positive(name: str, value: float) -> None:
    """Raises BadSetting unless value is a finite number > 0."""
    _check(name, value, Range(above=0))


def not_negative(name: str, value: float) -> None:
    """Raises BadSetting unless value is a finite number >= 0."""
    _check(name, value, Range(least=0))


def fraction(name: str, value: float) -> None:
    """Raises BadSetting unless value is a number with 0 <= value < 1."""
    _check(name, value, Range(least=0, below=1))


def _check(name: str, value: float, inside: Range) -> None:
    limit = Number(ranges=(inside,))
    if not limit.holds(value):
        raise BadSetting(f"{name} must be {limit.text(value)} (got {value})")


def full(x: Tensor) -> Tensor:
    """`x` in at least float32: half precision loses or overflows squares and exponentials."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in at least float32, also under autocast, which would run it in half precision. Raises
    BadData where they are of two types.
    """
    a, b = full(a), full(b)
    same_type("product", left=a, right=b)
    with torch.autocast(a.device.type, enabled=False):
        return a @ b


def same_type(where: str, **given: Tensor) -> None:
    """Raises BadData, naming both, unless the tensors have one type."""
    (first, tensor), *rest = given.items()
    for name, other in rest:
        if other.dtype != tensor.dtype:
            raise BadData(
                f"{where}: {first} is {_type(tensor)} and {name} {_type(other)}; "
                f"give both as one, as in {name}.to({first}.dtype)"
            )


def _type(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
