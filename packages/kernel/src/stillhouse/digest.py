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
from stillhouse.files import tree


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
    holds nothing counts by its name. Links are followed (see `files.tree`). Large files are read
    where they changed since the last time (stillhouse.memo).
    """
    if path.is_file():
        return file_digests([path])[path]
    found = tree(path)
    digests = file_digests([each for each in found if not each.is_dir()])
    return text_digest("\n".join(_line(path, each, digests.get(each)) for each in found))


@contextlib.contextmanager
def reported(report: Callable[[int, int], None]) -> Generator[None]:
    """Have `report` called with the bytes that were hashed and those to hash, after each file."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def file_digests(files: Sequence[Path]) -> dict[Path, str]:
    """sha256 of each file's bytes; large ones are read where they changed (stillhouse.memo)."""
    from stillhouse.memo import Memo

    memo, digests = Memo(files), dict[Path, str]()
    known = {file: memo.recall(file) for file in files}
    unknown = sum(memo.stats[file].size for file, sha256 in known.items() if sha256 is None)
    report, read = _report.get(), 0
    try:
        for file, sha256 in known.items():
            begun = time.time_ns()
            digests[file] = sha256 or file_digest(file)
            if sha256 is None:
                memo.remember(file, digests[file], begun_ns=begun)
                read += memo.stats[file].size
                report(read, unknown)
    finally:
        memo.close()  # what was hashed before a kill by Ctrl-C need not be again
    return digests


def _line(folder: Path, found: Path, sha256: str | None) -> str:
    name = found.relative_to(folder).as_posix()
    try:
        name.encode()
    except UnicodeEncodeError as error:  # no text of ours, in JSON or parquet, could hold it
        raise BadData(f"{folder}: the name {name!r} is not UTF-8; rename it") from error
    return f"{name}/" if sha256 is None else f"{name} {sha256}"


def stamp(path: Path) -> int:
    """Changes whenever a file or folder below does, without reading any file."""
    found = [path] if path.is_file() else tree(path)
    stats = ((f, f.stat()) for f in found)
    return hash(
        tuple((str(f), s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for f, s in stats)
    )


def known_digest(path: Path) -> str:
    """As `path_digest`; read again only where the stamp differs from that of the last time."""
    return _stamped_digest(path, stamp(path))


@functools.lru_cache(maxsize=256)
def _stamped_digest(path: Path, stamp: int) -> str:  # noqa: ARG001  the stamp is the cache's key
    return path_digest(path)


def arrays_digest(arrays: Mapping[str, Any]) -> str:  # Any: numpy arrays or tensors
    """sha256 over names, dtypes, shapes and bytes of arrays."""
    import numpy as np

    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()
