"""JSON files that stages, runs and users leave, read as the objects they must be."""

import functools
import reprlib
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from stillhouse.errors import CorruptArtifact

T = TypeVar("T")


def read_json(file: Path, kind: type[T], *, redo: str) -> T:
    """The JSON value in `file` as a `kind`: a frozen dataclass, a mapping, or any type pydantic
    reads; keys that a dataclass has not are left out.

    Raises CorruptArtifact, one line: the file, where in it, what was found, and `redo`, which says
    what to do.
    """
    try:
        return _adapter(kind).validate_json(file.read_bytes(), strict=True)
    except OSError as error:
        raise CorruptArtifact(f"{file}: cannot be read ({error.strerror}); {redo}") from error
    except pydantic.ValidationError as error:
        raise CorruptArtifact(f"{file}: {fault(error)}; {redo}") from error


def fault(error: pydantic.ValidationError) -> str:
    """The first fault that pydantic found, on one line and short whatever the value is."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return f"not JSON ({message.removeprefix('Invalid JSON: ')})"
    if first["type"] == "missing":
        return f"'{place}' is missing"
    if first["type"] == "value_error" and not place:
        return message  # of the whole object: the message says what it is about
    text = f"{message} (got {brief(first['input'])})"
    return f"{place}: {text}" if place else text


def brief(value: object) -> str:
    """A value as Python writes it, shortened: values of YAML may hold each other without end."""
    short = reprlib.Repr()
    short.maxlevel, short.maxdict, short.maxlist, short.maxtuple = 2, 4, 4, 4
    short.maxstring = short.maxother = short.maxlong = 60
    return " ".join(short.repr(value).split())


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter[Any]:  # Any: a type
    return pydantic.TypeAdapter(kind)
