"""Settings that reach nothing: with and without them the recipe says the same, so that a run of
them would be another variant with the same training.
"""

import difflib
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.data.sources import listed_once
from stillhouse.digest import digest
from stillhouse.errors import BadSetting, StillhouseError
from stillhouse.json_files import brief
from stillhouse.settings import Settings, make_recipe, make_settings

REFUSED = "refused"
NEAR = 3  # settings that are named in place of one that reaches nothing

Values = Mapping[str, Any]  # Any: JSON values


def checked_settings(name: str, scale: str, values: Values, given: Iterable[str]) -> Settings:
    """Settings of "domain/recipe" of which each of the `given` reaches something (`check_reach`).

    They are made many times over; the data that they follow are listed once.
    """
    with listed_once():
        settings = make_settings(name, scale, values)
        check_reach(name, settings, given)
    return settings


def check_reach(name: str, settings: Settings, given: Iterable[str]) -> None:
    """Raise BadSetting where one of the `given` settings of "domain/recipe" differs from its preset
    and changes nothing; it says why, and what would. Only `seeds` may, and what the data say of
    themselves: without it the variant is the same.
    """
    changed = {key: value for key, value in settings.overrides().items() if key != "seeds"}
    chosen = [key for key in given if key in changed]
    if chosen:
        _Variants(name=name, settings=settings, changed=changed).check(chosen)


@dataclass(frozen=True, kw_only=True)
class _Variants:
    """A recipe under other settings than the ones given."""

    name: str
    settings: Settings
    changed: Values

    def check(self, chosen: Iterable[str]) -> None:
        whole = self._made(self.changed)
        if whole.startswith(REFUSED):
            return  # the recipe itself says why
        for key in chosen:
            if not self._follows(key) and self._made(_without(self.changed, key)) == whole:
                what = f"{key}={_text(self.changed[key])}"
                raise BadSetting(
                    f"{self.name}: {what} reaches nothing{self._why(key)}; the variant would be "
                    f"the same training under another name{self._instead(key)}"
                )

    def _follows(self, key: str) -> bool:
        """Whether the value is the one that the data say, which a report's command gives, too."""
        if key not in self.settings.follows_data:
            return False
        try:
            return self._settings(_without(self.changed, key)) == self.settings
        except StillhouseError:
            return False

    def _settings(self, values: Values) -> Settings:
        given = {"seeds": self.settings.seeds, **values}
        return make_settings(self.name, self.settings.scale, given)

    def _made(self, values: Values) -> str:
        """The digest of the recipe of these settings; of refused ones the refusal."""
        try:
            return digest(make_recipe(self.name, self._settings(values)))
        except StillhouseError as error:
            return f"{REFUSED}: {error}"

    def _differs(self, one: Values, other: Values) -> bool:
        made = self._made(one)
        return not made.startswith(REFUSED) and made != self._made(other)

    def _why(self, key: str) -> str:
        """The other setting without whose value it would reach something."""
        for other, value in self._changes():
            rest = (
                _without(self.changed, other) if value is None else {**self.changed, other: value}
            )
            if self._differs(rest, _without(rest, key)):
                return f" with {other}={_text(getattr(self.settings, other))}"
        return ""

    def _changes(self) -> Iterable[tuple[str, Any]]:  # Any: a value; None: that of the preset
        """Other values: the preset's for what is changed, the default for what the preset changes,
        each choice of what has some.
        """
        cls = type(self.settings)
        yield from ((key, None) for key in self.changed)
        for key, value in cls.presets.get(self.settings.scale, {}).items():
            default = cls.model_fields[key].default
            if key not in self.changed and value != default:
                yield key, default
        for key, field in cls.model_fields.items():
            if typing.get_origin(field.annotation) is typing.Literal and key != "scale":
                yield from ((key, choice) for choice in typing.get_args(field.annotation))

    def _instead(self, key: str) -> str:
        """Settings of a near name that do change the recipe, with the entries of mappings."""
        found = [*self._entries(key), *self._near(key)][:NEAR]
        return f". What does reach: {', '.join(found)}" if found else ""

    def _entries(self, key: str) -> Iterable[str]:
        """Of settings that are mappings: the entry of this name, as {std_kd.temperature: 9}."""
        words = dict.fromkeys(_words(self.settings.model_dump(mode="json").values()))
        for name, field in type(self.settings).model_fields.items():
            if typing.get_origin(field.annotation) is not dict:
                continue
            for word in words:
                entry = {f"{word}.{key}": self.changed[key]}
                now = getattr(self.settings, name)
                if self._differs({**self.changed, name: {**now, **entry}}, self.changed):
                    yield f"{name}={{{word}.{key}: {self.changed[key]}}}"

    def _near(self, key: str) -> Iterable[str]:
        names = [name for name in type(self.settings).model_fields if name != key]
        for name in difflib.get_close_matches(key, names, n=2 * NEAR, cutoff=0.55):
            for other in _others(getattr(self.settings, name)):
                if self._differs({**self.changed, name: other}, self.changed):
                    yield name
                    break


def _without(values: Values, key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _others(value: object) -> Iterable[Any]:
    """Other values of the same kind, of which one may be allowed."""
    match value:
        case bool():
            return (not value,)
        case int():
            return (value + 1, value - 1)
        case float():
            return (value * 2 or 1.0, value / 2)
        case _:
            return ()


def _words(values: Iterable[Any]) -> Iterable[str]:  # Any: JSON values
    for value in values:
        if isinstance(value, str) and value:
            yield value
        elif isinstance(value, list):
            yield from _words(value)  # pyright: ignore[reportUnknownArgumentType]


def _text(value: Any) -> str:  # Any: a JSON value
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    return value if isinstance(value, str) else brief(value)
