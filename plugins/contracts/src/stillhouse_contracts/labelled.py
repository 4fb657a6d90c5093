"""A labelled function, whatever form it was read from."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A function with the types of vulnerability that it is labelled with, and its place."""

    code: str
    types: frozenset[str]
    contract: str  # the file or contract that must not be in two parts
    file: str
    function: str
    line: int
