"""What a hyperparameter may be, read from its annotation: bounds of a number, choices, or none."""

import math
import numbers
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal


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

    def holds(self, value: float) -> bool:
        """Whether the number is inside."""
        return (
            (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )


@dataclass(frozen=True, kw_only=True)
class Number:
    """A finite number inside all ranges, a whole one where the annotation says int; or, `several`,
    one or more of them. A bool is no number; one of NumPy is.
    """

    ranges: tuple[Range, ...] = ()
    whole: bool = False
    several: bool = False

    def holds(self, value: object) -> bool:
        if not self.several:
            return self._one(value)
        return _sequence(value) and len(value) > 0 and all(map(self._one, value))

    def _one(self, value: object) -> bool:
        return is_number(value, whole=self.whole) and all(r.holds(value) for r in self.ranges)

    def text(self, value: object) -> str:
        """What is wanted instead of `value`: what it is, where the value is none, and bounds."""
        given = value if self.several and _sequence(value) else (value,)
        kind = "whole" if self.whole else "finite"
        right = all(is_number(each, whole=self.whole) for each in given)
        bounds = [" and ".join(map(str, self.ranges))] if self.ranges else []
        if self.several:
            return " ".join([f"one or more {'' if right else kind + ' '}numbers", *bounds])
        return " ".join([*([] if right and bounds else [f"a {kind} number"]), *bounds])


@dataclass(frozen=True, kw_only=True)
class OneOf:
    """The choices of a Literal; True is none of 0 and 1."""

    choices: tuple[Any, ...]  # Any: what a Literal may hold

    def holds(self, value: object) -> bool:
        return any(type(value) is type(each) and value == each for each in self.choices)

    def text(self, value: object) -> str:
        choices = ", ".join(map(str, self.choices))
        return f"one of {choices}" if len(self.choices) > 1 else choices


Limit = Number | OneOf


def is_number(value: object, *, whole: bool = False) -> "typing.TypeGuard[float]":
    """Whether a value is a finite number, and not a bool."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return isinstance(value, numbers.Integral) if whole else math.isfinite(value)


def limits(annotation: Any) -> tuple[Limit, ...]:  # Any: a type
    """The alternatives of a parameter; none where its annotation says nothing of values."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return (OneOf(choices=typing.get_args(annotation)),)
    if annotation is None or annotation is types.NoneType:
        return (OneOf(choices=(None,)),)
    if origin in (typing.Union, types.UnionType):
        each = [limits(member) for member in typing.get_args(annotation)]
        return tuple(limit for one in each for limit in one) if all(each) else ()
    if origin is Annotated:
        base, *beside = typing.get_args(annotation)
        return _bounded(base, tuple(one for one in beside if isinstance(one, Range)))
    return _bounded(annotation, ()) if annotation in (int, float) else ()


def _bounded(base: Any, ranges: tuple[Range, ...]) -> tuple[Limit, ...]:  # Any: a type
    """The limits of a base type, whose numbers are inside the ranges too."""
    if not ranges and base not in (int, float):
        return limits(base)
    if typing.get_origin(base) in (typing.Union, types.UnionType):
        members = typing.get_args(base)
        return tuple(
            limit
            for each in members
            for limit in (limits(each) if each is types.NoneType else _bounded(each, ranges))
        )
    inner = typing.get_args(base)
    several = bool(inner) or base in (tuple, list)
    return (Number(ranges=ranges, whole=int in (inner or (base,)), several=several),)


def _sequence(value: object) -> "typing.TypeGuard[tuple[object, ...] | list[object]]":
    return isinstance(value, tuple | list)
