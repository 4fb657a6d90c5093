"""What a stored file may name and so have called: builders of networks and functions that make
arrays, defined in `stillhouse` or in a package that declares a domain.

A model folder comes from anywhere. Nothing in it may reach a function that was not written to be
named there: whatever a name says is looked at before it is called.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Generator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from stillhouse.errors import BadRecipe, CorruptArtifact, PluginError

if TYPE_CHECKING:
    from torch import nn

    from stillhouse.data.encoded import Decoder

# what a function is when it is defined: plain, or with functools.cache
FUNCTIONS = (types.FunctionType, type(functools.cache(len)))
NAME = re.compile(r"(?!.*\b__)[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.A)


# the stage that runs, and the modules that its key covers
_COVERED: ContextVar[tuple[str, Collection[str]] | None] = ContextVar("covered", default=None)
_CODE: ContextVar[Callable[[object], str] | None] = ContextVar("code", default=None)


@contextlib.contextmanager
def covered(
    stage: str, modules: Collection[str], code: Callable[[object], str] | None = None
) -> Generator[None]:
    """While `stage` runs: what it reads may name these modules only, for its key covers no other
    code; `code` gives the digest of the code that a value can reach.
    """
    token, other = _COVERED.set((stage, modules)), _CODE.set(code)
    try:
        yield
    finally:
        _COVERED.reset(token)
        _CODE.reset(other)


def code_of(value: object) -> str:
    """Digest of the code that a value can reach; "" where no stage runs."""
    code = _CODE.get()
    return code(value) if code is not None else ""


def builder(name: str) -> "Callable[..., nn.Module]":
    """The class or function "module:qualname" that gives an nn.Module, by its base class or by its
    annotation. Raises PluginError or BadRecipe.
    """
    from torch import nn

    found = _defined(name)
    gives = found if isinstance(found, type) else _returns(found, name)
    if not (isinstance(gives, type) and issubclass(gives, nn.Module)):
        raise PluginError(
            f"'{name}': builds no network; a model's `build` is an nn.Module class, or a function "
            "annotated to return one"
        )
    return found


def decoder_class(name: str) -> "type[Decoder]":
    """The Decoder class "module:qualname". Raises PluginError or BadRecipe. Its caller compares its
    code with what is recorded beside the name, whatever the stage's key covers.
    """
    from stillhouse.data.encoded import Decoder

    found = _defined(name, covered=False)
    if not (isinstance(found, type) and issubclass(found, Decoder)):
        raise PluginError(f"'{name}': decodes nothing; it is no stillhouse.data.Decoder class")
    return found


def array_maker(name: str) -> Callable[[], Mapping[str, Any]]:  # Any: numpy arrays or tensors
    """The function "module:function" without arguments that is annotated to return a mapping of
    arrays. Raises PluginError or BadRecipe.
    """
    found = _defined(name)
    gives = None if isinstance(found, type) else _returns(found, name)
    if not _is_arrays(gives) or _needed(found):
        raise PluginError(
            f"'{name}': makes no arrays; builtin: names a function without arguments that is "
            "annotated to return a mapping of names to arrays, as stillhouse_vision.samples:digits"
        )
    return found


def check_arguments(build: Callable[..., Any], kwargs: Mapping[str, Any], *, name: str) -> None:
    """Whether JSON values fit a builder's signature and annotations; CorruptArtifact where they do
    not. Nothing is called.
    """
    import pydantic

    try:
        inspect.signature(build).bind(**kwargs)
    except TypeError as error:
        raise CorruptArtifact(f"arguments do not fit '{name}' ({error})") from error
    hints = _hints(build.__init__ if isinstance(build, type) else build, name)
    for key, value in kwargs.items():
        try:
            adapter = pydantic.TypeAdapter[Any](
                hints.get(key, Any), config=pydantic.ConfigDict(arbitrary_types_allowed=True)
            )
            adapter.validate_json(json.dumps(value), strict=True)
        except pydantic.ValidationError as error:
            raise CorruptArtifact(
                f"argument '{key}' does not fit '{name}': {error.errors()[0]['msg']}"
            ) from error


def trusted_packages() -> set[str]:
    """Top-level packages whose builders a stored spec may name."""
    points = importlib.metadata.entry_points(group="stillhouse.domains")
    return {"stillhouse"} | {point.value.partition(":")[0].partition(".")[0] for point in points}


def _defined(name: str, *, covered: bool = True) -> Any:  # Any: a function or class
    """The function or class that is defined, under this name, in a module of a trusted package;
    `covered`: in one that the running stage's key covers.
    """
    if not NAME.fullmatch(name):
        raise PluginError(f"{_brief(name)}: not of the form module:function")
    module, _, qualname = name.partition(":")
    package = module.partition(".")[0]
    if package not in trusted_packages():
        raise PluginError(
            f"'{name}': package '{package}' is neither stillhouse nor a plugin that declares a "
            "'stillhouse.domains' entry point; nothing of it is imported"
        )
    stage, modules = _COVERED.get() or ("", (module,))
    if covered and module not in modules:
        raise BadRecipe(
            f"stage '{stage}': '{name}' is named in what it reads, but nothing in the stage leads "
            f"to it, so that its key would not see a change of it; import {module} where the name "
            "is read"
        )
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise BadRecipe(f"'{name}' cannot be found: {error}") from error
    for part in qualname.split("."):
        # not getattr: what a module imports, or makes on demand, is not its own
        if part not in vars(found):
            raise BadRecipe(f"'{name}' cannot be found: {module} defines no '{qualname}'")
        found = vars(found)[part]
        if not isinstance(found, (type, *FUNCTIONS)):
            raise PluginError(f"'{name}': '{part}' is neither a function nor a class")
    if (found.__module__, found.__qualname__) != (module, qualname):
        raise PluginError(
            f"'{name}': defined elsewhere, as {found.__module__}:{found.__qualname__}; only the "
            "name under which a function or class is defined is read"
        )
    return found


def _returns(function: Callable[..., Any], name: str) -> Any:  # Any: an annotation
    return _hints(function, name).get("return")


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:  # Any: annotations
    try:
        return typing.get_type_hints(function)
    except (NameError, AttributeError, TypeError) as error:
        raise PluginError(
            f"'{name}': its annotations cannot be read ({error}); import the types it names at run "
            "time, not under TYPE_CHECKING"
        ) from error


def _is_arrays(annotation: Any) -> bool:  # Any: an annotation
    import numpy as np
    from torch import Tensor

    origin, values = typing.get_origin(annotation), typing.get_args(annotation)
    if not (isinstance(origin, type) and issubclass(origin, Mapping) and len(values) == 2):
        return False
    union = (typing.Union, types.UnionType)
    kinds = typing.get_args(values[1]) if typing.get_origin(values[1]) in union else values[1:]
    return all(_class_of(kind) in (np.ndarray, Tensor) for kind in kinds)


def _class_of(annotation: Any) -> Any:  # Any: an annotation
    """What an annotation is of, without its arguments. From NumPy 2.5 on, NDArray is an alias of
    its own kind (PEP 695), whose value is the array.
    """
    while inner := getattr(annotation, "__value__", None) or typing.get_origin(annotation):
        annotation = inner
    return annotation


def _needed(function: Callable[..., Any]) -> bool:
    """Whether it has parameters that must be given."""
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(
        parameter.default is parameter.empty and parameter.kind not in optional
        for parameter in inspect.signature(function).parameters.values()
    )


def _brief(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."
