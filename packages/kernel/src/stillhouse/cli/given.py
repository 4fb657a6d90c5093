"""What follows the student's name on `predict`'s command line, as the domain's function takes it.

Its keyword-only parameters are options; the type of its parameter `inputs` says whether what stands
alone are files, texts, or both. A function without that parameter takes none.
"""

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stillhouse.artifact import Built
from stillhouse.errors import BadSetting, MissingData, UnknownName

INPUTS = "inputs"
Rows = Sequence[Mapping[str, Any]]  # Any: what a cell shows


@dataclass(frozen=True, kw_only=True)
class Given:
    """Inputs as they stand, and the text of each option by the name of its parameter."""

    inputs: Sequence[str]
    options: Mapping[str, str]

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """From "--name value" and "--name=value" among inputs. Raises BadSetting for an option
        without a value.
        """
        inputs, options, rest = list[str](), dict[str, str](), iter(words)
        for word in rest:
            if word.startswith("--"):
                name, equals, value = word.removeprefix("--").partition("=")
                found = value if equals else next(rest, None)
                if found is None:
                    raise BadSetting(f"{word}: needs a value behind it, as in {word} 1")
                options[name.replace("-", "_")] = found
            else:
                inputs.append(word)
        return cls(inputs=inputs, options=options)

    def call(self, function: Callable[..., Rows], built: Built, where: str) -> Rows:
        """What the domain's function gives. Raises UnknownName for an option that it does not take,
        BadSetting for one that is missing or of another type and for inputs that are too few or too
        many, MissingData for a missing file.
        """
        takes, kinds = inspect.signature(function).parameters, typing.get_type_hints(function)
        named = {n: p for n, p in takes.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
        valid = [_option(name) for name in named]
        for name in self.options:
            if name not in named:
                raise UnknownName("option of predict", _option(name), valid, where=where)
        for name, parameter in named.items():
            if parameter.default is inspect.Parameter.empty and name not in self.options:
                raise BadSetting(f"{where}: predict needs {_option(name)}")
        options = {n: _value(kinds[n], text, _option(n)) for n, text in self.options.items()}
        if INPUTS not in takes:
            if self.inputs:
                raise BadSetting(
                    f"{where}: predict takes options alone, {', '.join(valid)} "
                    f"(got '{self.inputs[0]}')"
                )
            return function(built, **options)
        if not self.inputs:
            raise BadSetting(f"{where}: predict has nothing to predict; name {_wanted(kinds)}")
        return function(built, [_input(kinds, text) for text in self.inputs], **options)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _items(kinds: Mapping[str, Any]) -> set[Any]:  # Any: types
    """What an input may be: Path, str or both."""
    (item,) = typing.get_args(kinds[INPUTS])
    return set(typing.get_args(item)) or {item}


def _wanted(kinds: Mapping[str, Any]) -> str:  # Any: types
    words = {Path: "files", str: "texts"}
    return " or ".join(word for kind, word in words.items() if kind in _items(kinds))


def _input(kinds: Mapping[str, Any], text: str) -> Path | str:  # Any: types
    """A path where it can be one and is there; else a text, where the function takes texts."""
    items = _items(kinds)
    if Path in items and (str not in items or _is_there(text)):
        if not _is_there(text):
            raise MissingData(f"{text} not found; give existing files")
        return Path(text)
    return text


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # longer than a name may be, or with a zero in it
        return False


def _value(kind: Any, text: str, option: str) -> Any:  # Any: a type, and a value of it
    from pydantic import TypeAdapter, ValidationError

    from stillhouse.settings import typed

    try:
        return TypeAdapter(kind).validate_python(typed(kind, text, where=option))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].lower()
        raise BadSetting(f"{option} {text}: {reason}") from error
