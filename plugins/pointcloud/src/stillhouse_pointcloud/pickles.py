"""Pickles that others wrote, read without running anything in them: pickle is code.

numpy's arrays are not made by numpy's own functions for it: with a dtype of objects, these take
bytes of the file for addresses.
"""

import collections
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from stillhouse.errors import BadData

KINDS = "biufUS"  # truth values, integers, floats, texts


class _Kind:
    """Stands for numpy.dtype."""

    def __init__(self, code: str, *rest: object) -> None:
        self.dtype = np.dtype(str(code))
        if self.dtype.kind not in KINDS:
            raise pickle.UnpicklingError(f"it contains arrays of {code}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # Any: numpy's own
        if state[1] == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """Stands for an empty numpy.ndarray, which then gets its state."""

    def __init__(self) -> None:
        self.array: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:  # Any: numpy's own
        _, shape, kind, fortran, raw = state
        self.array = _filled(raw, kind, shape, "F" if fortran else "C")


def _filled(
    raw: bytes, kind: _Kind, shape: Sequence[int], order: Any = "C"
) -> NDArray[Any]:  # Any: a letter; an array of any of `KINDS`
    return np.ndarray(tuple(shape), kind.dtype, buffer=bytes(raw), order=order).copy()


def _empty(*given: object) -> _Array:  # noqa: ARG001  the class, a shape and a type
    return _Array()


def _scalar(kind: _Kind, raw: bytes) -> Any:  # Any: a number or text
    return _filled(raw, kind, ())[()]


def _encoded(text: str, name: str = "") -> bytes:  # noqa: ARG001
    """Bytes as protocol 2 has them, in a text."""
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """No bytes as protocol 2 has them."""
    return b""


# what numbers, texts, lists and dicts do not need, and numpy's arrays and numbers do; numpy.core is
# where numpy 1 has them
KNOWN: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): collections.OrderedDict,
} | {
    (f"numpy.{core}.{module}", name): function
    for core in ("core", "_core")
    for module, name, function in (
        ("multiarray", "_reconstruct", _empty),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _filled),
    )
}


class _Plain(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:  # Any: of `KNOWN`
        if (module_name, global_name) not in KNOWN:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}")
        return KNOWN[module_name, global_name]

    def persistent_load(self, pid: Any) -> NoReturn:  # Any: what the pickle says
        raise pickle.UnpicklingError(f"it refers to {pid}")


def read_pickle(file: Path) -> Any:  # Any: what others wrote
    """The numbers, texts, lists, dicts and numpy arrays in a pickle. Raises BadData for one that
    holds, or refers to, anything else, and for one that is cut short.
    """
    try:
        with file.open("rb") as stream:
            return _settled(_Plain(stream).load())
    except OSError as error:
        raise BadData(f"{file}: cannot be read ({error.strerror}); replace it") from error
    except Exception as error:  # a file that is no pickle may fail in any way
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise BadData(
            f"{file}: not a pickle of numbers, texts, lists, dicts and numpy arrays alone "
            f"({reason}); nothing in it was run; make it anew"
        ) from error


def _settled(value: Any) -> Any:  # Any: what others wrote
    """The same with arrays in place of what stood for them."""
    if isinstance(value, _Array):
        return value.array
    if isinstance(value, dict):
        pairs = cast(dict[Any, Any], value).items()
        return {key: _settled(item) for key, item in pairs}
    if isinstance(value, list | tuple):
        items = [_settled(item) for item in cast(Sequence[Any], value)]
        return tuple(items) if isinstance(value, tuple) else items
    return value
