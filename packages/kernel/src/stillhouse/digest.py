"""Digests: sha256 over canonical JSON, files, folders and arrays.

A recipe is hashed by what it says: frozen dataclasses, mappings, sequences, plain values, and
functions or classes by their module and name. A lambda or closure has no name that another process
could find, so it is refused with its path.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import time
import types
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from contextvars import ContextVar
from enum import Enum
from pathlib import Path
from typing import Any

from stillhouse.errors import BadData, UnhashableRecipe
from stillhouse.files import Below, Stat, below


def _unreported(_read: int, _all: int) -> None: ...


# of whoever waits for gigabytes to be hashed
_report: ContextVar[Callable[[int, int], None]] = ContextVar("report", default=_unreported)


def canonical(value: Any, *, at: str = "recipe") -> Any:  # Any: whatever a recipe may hold
    """`value` as JSON data with one spelling only; `at` is the path named in the error.

    Raises UnhashableRecipe for lambdas, closures, NaN and objects that are not frozen dataclasses.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                raise UnhashableRecipe(f"{at}: {value} cannot be hashed; use a finite number")
            return value
        case Enum():
            return {"enum": _name(type(value), at), "value": value.name}
        case Path():
            return {"path": value.as_posix()}
        case functools.partial():
            return {
                "partial": canonical(value.func, at=at),
                "args": canonical(value.args, at=at),
                "kwargs": canonical(value.keywords, at=at),
            }
        case type() | types.FunctionType() | types.BuiltinFunctionType():
            return {"name": _name(value, at)}
        case Mapping():
            return {
                "map": {
                    _key(k, at): canonical(v, at=f"{at}[{k!r}]")
                    for k, v in sorted(value.items(), key=_by_key)
                }
            }
        case Set():
            return {"set": sorted(json.dumps(canonical(v, at=at), sort_keys=True) for v in value)}
        case Sequence():
            return [canonical(v, at=f"{at}[{i}]") for i, v in enumerate(value)]
        case _ if dataclasses.is_dataclass(value):
            return _dataclass(value, at)
        case _ if hasattr(
            value, "model_dump"
        ):  # pydantic settings, without importing pydantic here
            return {"settings": canonical(value.model_dump(mode="json"), at=at)}
        case _:
            raise UnhashableRecipe(
                f"{at}: a {type(value).__module__}.{type(value).__qualname__} cannot be hashed; "
                "use a frozen dataclass, a module-level function, or plain values"
            )


def _by_key(item: tuple[Any, Any]) -> str:
    return str(item[0])


def _key(key: object, at: str) -> str:
    if not isinstance(key, str):
        raise UnhashableRecipe(f"{at}: mapping keys must be strings (got {key!r})")
    return key


def _name(value: Any, at: str) -> str:  # Any: a function or a class
    qualname = value.__qualname__
    if "<lambda>" in qualname or "<locals>" in qualname:
        kind = "a lambda" if "<lambda>" in qualname else f"'{qualname}', defined inside a function,"
        raise UnhashableRecipe(
            f"{at}: {kind} cannot be hashed; "
            "move it to a module-level function or a frozen dataclass"
        )
    return f"{value.__module__}:{qualname}"


def _dataclass(value: Any, at: str) -> Any:  # Any: a dataclass instance
    if not type(value).__dataclass_params__.frozen:
        raise UnhashableRecipe(f"{at}: dataclass {type(value).__qualname__} must be frozen")
    fields = {
        f.name: canonical(getattr(value, f.name), at=f"{at}.{f.name}")
        for f in dataclasses.fields(value)
    }
    return {"type": _name(type(value), at), "fields": fields}


def digest(value: Any, *, at: str = "recipe") -> str:  # Any: as canonical
    """sha256 of the canonical JSON of `value`, 64 hexadecimal characters."""
    return text_digest(
        json.dumps(
            canonical(value, at=at), sort_keys=True, separators=(",", ":"), ensure_ascii=True
        )
    )


def text_digest(text: str) -> str:
    """sha256 of UTF-8 text."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def path_digest(path: Path) -> str:
    """sha256 of a file, or of a folder's sorted relative names and file digests; a folder that
    holds nothing counts by its name. Links are followed (see `files.below`). Large files are read
    where they changed since the last time (stillhouse.memo).
    """
    return _digest(path, _listed(path))


def file_digests(files: Sequence[Path]) -> dict[Path, str]:
    """sha256 of each file's bytes; large ones are read where they changed."""
    found = [Below(str(file), Stat.of(file.stat())) for file in files]
    contents = _contents(Path(), found)
    return {file: sha256 or "" for file, sha256 in zip(files, contents, strict=True)}


def _listed(path: Path) -> list[Below]:
    return [Below("", Stat.of(path.stat()))] if path.is_file() else below(path)


def _digest(path: Path, found: Sequence[Below]) -> str:
    contents = _contents(path, found)
    if path.is_file():
        return contents[0] or ""
    total = hashlib.sha256()
    for number, (each, sha256) in enumerate(zip(found, contents, strict=True)):
        total.update(_line(path, each.name, sha256, ahead="\n" if number else ""))
    return total.hexdigest()


@contextlib.contextmanager
def reported(report: Callable[[int, int], None]) -> Generator[None]:
    """Have `report` called with the bytes that were hashed and those to hash, after each file."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def _contents(path: Path, found: Sequence[Below]) -> list[str | None]:
    """sha256 of each file's bytes, None for a folder; large ones are read where they changed."""
    from stillhouse.memo import Memo

    memo = Memo([each.stat for each in found])
    digests, report, read = memo.recall(), _report.get(), 0
    unknown = [
        (n, each.name, each.stat) for n, each in enumerate(found) if each.stat and not digests[n]
    ]
    size = sum(stat.size for _, _, stat in unknown)
    try:
        for number, name, stat in unknown:
            file, begun = path / name, time.time_ns()
            digests[number] = sha256 = file_digest(file)
            memo.remember(file, stat, sha256, begun_ns=begun)
            read += stat.size
            report(read, size)
    finally:
        memo.close()  # what was hashed before a kill by Ctrl-C need not be again
    return digests


def _line(folder: Path, name: str, sha256: str | None, *, ahead: str) -> bytes:
    try:
        return f"{ahead}{name}/".encode() if sha256 is None else f"{ahead}{name} {sha256}".encode()
    except UnicodeEncodeError as error:  # no text of ours, in JSON or parquet, could hold it
        raise BadData(f"{folder}: the name {name!r} is not UTF-8; rename it") from error


# path -> a hash of what lies there, which no file need be read for, and its digest
_known: dict[Path, tuple[int, str]] = {}


def known_digest(path: Path) -> str:
    """As `path_digest`; read again only where a file or folder below has changed since."""
    found = _listed(path)
    known, now = _known.get(path), hash(tuple(found))
    if known is None or known[0] != now:
        known = _known[path] = now, _digest(path, found)
    return known[1]


def arrays_digest(arrays: Mapping[str, Any]) -> str:  # Any: numpy arrays or tensors
    """sha256 over names, dtypes, shapes and bytes of arrays."""
    import numpy as np

    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
