"""Settings: frozen and typed, with a preset a scale; the same object from the command line and from
params.yaml.
"""

import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import pydantic

from stillhouse.digest import digest
from stillhouse.domain import recipe_function
from stillhouse.errors import BadRecipe, BadSetting, UnknownName
from stillhouse.inputs import check_present, raw_input
from stillhouse.json_files import fault, read_json
from stillhouse.packages import SCHEME, package_file
from stillhouse.params import read_params, read_yaml
from stillhouse.places import project_root
from stillhouse.recipe import OUTSIDE, SCALES, Recipe, Scale

__all__ = [
    "Input",
    "Settings",
    "Stored",
    "find_settings",
    "make_recipe",
    "make_settings",
    "parse_assignments",
    "read_params",
    "settings_class",
    "typed",
]

# also the name of a folder, and a word of commands that DVC hands to a shell
VARIANT = re.compile(r"[a-z0-9]+(-[a-z0-9]+)?")
EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
NOTHING = ("", "none", "null")
# larger counts are mistakes, and would fill the memory before anything could say so
MOST = 2**31 - 1
# a step of 1e30 is none; and no reader of a record may meet a number that JSON has not
LARGEST = 1e30


def _reference(value: str) -> str:
    if value and not value.startswith(OUTSIDE):
        raise ValueError(
            f"begins with none of {', '.join(OUTSIDE)}; for a file or folder say file:{value}"
        )
    if value.startswith(SCHEME):
        try:
            package_file(value)
        except BadRecipe as error:
            raise ValueError(str(error)) from error
    return value


# what a recipe reads from outside: "data:...", "file:...", "builtin:...", "hub:...",
# "package:...", or nothing
Input = Annotated[str, pydantic.AfterValidator(_reference)]


class Settings(pydantic.BaseModel):
    """Base of every recipe's settings. `presets` gives what differs from the field defaults at each
    scale.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {}  # Any: field values
    # settings that describe the data; with data of a user's own the presets' do not hold
    follows_data: ClassVar[tuple[str, ...]] = ()

    scale: Scale = pydantic.Field("tiny", description="how large a run is, and on which data")
    seeds: int = pydantic.Field(
        1, ge=1, le=1000, description="students trained, each from its own seed"
    )
    data: Input = pydantic.Field(
        "", description="where the data come from: data:, file: or builtin:"
    )
    teacher: Input = pydantic.Field(
        "", description="your teacher: file:<folder or checkpoint>; empty trains one"
    )

    @classmethod
    def from_data(
        cls,
        source: Any,  # noqa: ARG003  Any: what a stage would be given, a Path or arrays by name
        values: Mapping[str, Any],  # noqa: ARG003  Any: field values
        given: Mapping[str, Any],  # noqa: ARG003
    ) -> Mapping[str, Any]:  # Any: field values
        """Values of `follows_data` as data of a user's own have them. `values` are the preset with
        what the user set, `given` that alone. It must be quick: each command calls it.
        """
        return {}

    @classmethod
    def at(
        cls, scale: str, overrides: Mapping[str, Any] | None = None, *, where: str = "settings"
    ) -> Self:
        """The preset of `scale` with `overrides`; raises UnknownName or BadSetting, one line."""
        if scale not in SCALES:
            raise UnknownName("scale", scale, SCALES, where=where)
        chosen = dict(overrides or {})
        for key in chosen:
            if key not in cls.model_fields or key == "scale":
                raise UnknownName("setting", key, set(cls.model_fields) - {"scale"}, where=where)
        try:
            return cls.model_validate({"scale": scale, **cls.presets.get(scale, {}), **chosen})
        except pydantic.ValidationError as error:
            raise BadSetting(f"{where}: {fault(error)}") from error

    @pydantic.model_validator(mode="after")
    def _of_a_size(self) -> Self:
        for name in type(self).model_fields:
            for number in _numbers(getattr(self, name)):
                most = MOST if isinstance(number, int) else LARGEST
                if math.isnan(number) or (math.isfinite(number) and abs(number) > most):
                    raise ValueError(f"{name}: a number of at most {most} (got {number:g})")
        return self

    def overrides(self) -> dict[str, Any]:  # Any: JSON values
        """What differs from the preset of this scale, as JSON values; with data of a user's own
        also what follows them, so that nobody need look at them again.
        """
        preset = type(self).at(self.scale).model_dump(mode="json")
        own = self.follows_data if self.data != preset["data"] else ()
        values = self.model_dump(mode="json")
        return {k: v for k, v in values.items() if v != preset[k] or k in own}

    def variant(self) -> str:
        """The scale, plus '-' and 8 characters of a digest when anything but `seeds` differs from
        the preset.
        """
        different = {k: v for k, v in self.overrides().items() if k != "seeds"}
        return f"{self.scale}-{digest(different)[:8]}" if different else self.scale


def _numbers(value: object) -> Iterable[float]:
    """The numbers in a setting's value."""
    match value:
        case bool():
            return
        case int() | float():
            yield value
        case tuple() | list():
            for item in value:  # pyright: ignore[reportUnknownVariableType]
                yield from _numbers(item)  # pyright: ignore[reportUnknownArgumentType]
        case dict():
            yield from _numbers(list(value.values()))  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
        case _:
            return


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What settings.json of a finished run says."""

    settings: dict[str, Any]  # Any: JSON values
    scale: Scale = "tiny"


def settings_class(name: str) -> type[Settings]:
    """The settings class of "domain/recipe", read off its function's annotation."""
    hints = typing.get_type_hints(recipe_function(name))
    return next(hint for key, hint in hints.items() if key != "return")


def parse_assignments(pairs: Iterable[str]) -> dict[str, str]:
    """`["seeds=3", "objective=kd,dkd"]` as texts by name; `make_settings` gives them their types.
    Raises BadSetting.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise BadSetting(f"--set {pair}: expected key=value, as in --set seeds=3")
        values[key.strip()] = text
    return values


def make_settings(name: str, scale: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings of "domain/recipe" at a scale; texts, as `--set` and params.yaml give them, are read
    as the setting's type requires. What is not set and follows the data is read off data of a
    user's own.
    """
    cls = settings_class(name)
    values: dict[str, Any] = {}
    for key, value in (overrides or {}).items():
        field = cls.model_fields.get(key)
        values[key] = value if field is None else typed(field.annotation, value, where=key)
    return cls.at(scale, {**_from_data(cls, scale, values), **values}, where=name)


def _from_data(
    cls: type[Settings], scale: str, given: Mapping[str, Any]
) -> dict[str, Any]:  # Any: field values
    preset = next((values for key, values in cls.presets.items() if key == scale), {})
    ref, missing = given.get("data"), set(cls.follows_data) - set(given)
    if not missing or not isinstance(ref, str) or ref == preset.get("data"):
        return {}
    if not ref.startswith(OUTSIDE):
        return {}  # `at` says what is wrong
    # not only the data, which are read now
    check_present((v for v in given.values() if isinstance(v, str)), project_root())
    found = cls.from_data(raw_input(ref, project_root()), {**preset, **given}, given)
    return {key: value for key, value in found.items() if key in missing}


def typed(annotation: Any, value: Any, *, where: str) -> Any:  # Any: a type; JSON values
    """A setting's value from its text: of a tuple "a,b" or "[a, b]", of a mapping "{a: 1}", of a
    text itself; what is no text stays. Raises BadSetting.
    """
    kind, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if kind is tuple:
        items = _items(value, where) if isinstance(value, str) else value
        several = items if isinstance(items, (list, tuple)) else [items]
        return [typed(inner[0], item, where=where) for item in several]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, str):
        return value
    text = value.strip()
    if kind is dict:
        return _yaml(text, where)
    if kind in (typing.Union, types.UnionType) and type(None) in inner and text in NOTHING:
        return None
    return float(text) if annotation is int and EXPONENT.fullmatch(text) else value


def _items(text: str, where: str) -> Any:  # Any: a list of texts, or of lists
    text = text.strip()
    if text.startswith("["):
        return _yaml(text, where)
    return [part.strip() for part in text.split(",")] if text else []


def _yaml(text: str, where: str) -> Any:  # Any: texts, lists and mappings
    try:
        return read_yaml(text)
    except ValueError as error:
        raise BadSetting(f"{where}: not a list or mapping ({error})") from error


def make_recipe(name: str, settings: Settings) -> Recipe:
    """The frozen recipe of these settings, hashed once so that a lambda in it is refused here.
    Raises BadSetting where networks or counts of these sizes fit no memory.
    """
    function = recipe_function(name)
    try:
        recipe = function(settings)
    except (MemoryError, OverflowError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BadSetting(
            f"{name}: no recipe of these settings can be made ({reason[:200]}); sizes or widths "
            "may be too large"
        ) from error
    digest(recipe, at=f"recipe '{name}'")
    return recipe


def find_settings(name: str, root: Path, runs: Path) -> tuple[str, Settings]:
    """Settings for `RECIPE[@variant]`: from params.yaml, else from the finished run's folder, else
    the bare scale.

    Returns the recipe's name without the variant, and the settings. The variant defaults to `tiny`.
    """
    recipe, _, variant = name.partition("@")
    variant = variant or "tiny"
    if not VARIANT.fullmatch(variant):
        raise BadSetting(
            f"{name}: expected RECIPE@SCALE or RECIPE@SCALE-CHARACTERS as `list` shows"
        )
    scale = variant.partition("-")[0]
    known = read_params(root).get(recipe, {})
    if variant in known:
        settings = make_settings(recipe, scale, known[variant])
        if settings.variant() != variant:
            raise BadSetting(
                f"params.yaml: {recipe}: these settings belong to variant '{settings.variant()}', "
                f"not '{variant}'; rename it"
            )
        return recipe, settings
    record = runs / recipe / variant / "settings.json"
    if record.is_file():
        stored = read_json(record, Stored, redo="run the recipe again")
        return recipe, make_settings(recipe, scale, stored.settings)
    if variant in SCALES:
        return recipe, make_settings(recipe, variant)
    settings_class(recipe)  # an unknown recipe is the better error
    stored = (
        sorted(p.name for p in (runs / recipe).glob("*") if p.is_dir())
        if (runs / recipe).is_dir()
        else []
    )
    raise UnknownName("variant", variant, {*SCALES, *known, *stored}, where=recipe)
