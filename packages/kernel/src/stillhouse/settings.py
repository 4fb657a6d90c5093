"""Settings: frozen and typed, with a preset a scale; the same object from the command line and from
params.yaml.
"""

import json
import re
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import pydantic
import yaml

from stillhouse.digest import digest
from stillhouse.domain import recipe_function
from stillhouse.errors import BadSetting, UnknownName
from stillhouse.recipe import SCALES, Recipe, Scale

# keys of params.yaml that are no domain
RESERVED = ("gate",)
# also the name of a folder, and a word of commands that DVC hands to a shell
VARIANT = re.compile(r"[a-z0-9]+(-[a-z0-9]+)?")
NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


class Settings(pydantic.BaseModel):
    """Base of every recipe's settings. `presets` gives what differs from the field defaults at each
    scale.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")
    presets: ClassVar[Mapping[Scale, Mapping[str, Any]]] = {}  # Any: field values

    scale: Scale = "tiny"
    seeds: int = pydantic.Field(1, ge=1, description="students trained, each from its own seed")
    data: str = pydantic.Field("", description="where the data come from: data:, file: or builtin:")
    teacher: str = pydantic.Field(
        "", description="a teacher of your own: file:<folder or checkpoint>; empty trains one"
    )

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
            raise BadSetting(f"{where}: {_first(error)}") from error

    def overrides(self) -> dict[str, Any]:  # Any: JSON values
        """What differs from the preset of this scale, as JSON values."""
        preset = type(self).at(self.scale).model_dump(mode="json")
        return {k: v for k, v in self.model_dump(mode="json").items() if v != preset[k]}

    def variant(self) -> str:
        """The scale, plus '-' and 8 characters of a digest when anything but `seeds` differs from
        the preset.
        """
        different = {k: v for k, v in self.overrides().items() if k != "seeds"}
        return f"{self.scale}-{digest(different)[:8]}" if different else self.scale


def _first(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: {message} (got {first['input']!r})" if field else message


def settings_class(name: str) -> type[Settings]:
    """The settings class of "domain/recipe", read off its function's annotation."""
    hints = typing.get_type_hints(recipe_function(name))
    return next(hint for key, hint in hints.items() if key != "return")


def parse_assignments(pairs: Iterable[str]) -> dict[str, Any]:  # Any: JSON values
    """`["seeds=3", "objective=kd,dkd"]` as values: numbers, booleans and lists are read as YAML,
    the rest is text.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise BadSetting(f"--set {pair}: expected key=value, as in --set seeds=3")
        parts = (
            [_scalar(part) for part in text.split(",")]
            if "," in text and not text.startswith("[")
            else None
        )
        values[key.strip()] = parts if parts is not None else _scalar(text)
    return values


def _scalar(text: str) -> Any:  # Any: a JSON value
    if NUMBER.fullmatch(text):  # YAML 1.1 takes 1e-3 for text
        return float(text)
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, (bool, int, float, list, dict)) else text


def make_settings(name: str, scale: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings of "domain/recipe" at a scale, with values as `--set` gives them (text for a tuple
    becomes one).
    """
    cls = settings_class(name)
    return cls.at(
        scale, {k: _as_field(cls, k, v) for k, v in (overrides or {}).items()}, where=name
    )


def _as_field(cls: type[Settings], key: str, value: Any) -> Any:  # Any: JSON values
    field = cls.model_fields.get(key)
    wants_tuple = field is not None and typing.get_origin(field.annotation) is tuple
    return [value] if wants_tuple and not isinstance(value, (list, tuple)) else value


def make_recipe(name: str, settings: Settings) -> Recipe:
    """The frozen recipe of these settings, hashed once so that a lambda in it is refused here."""
    recipe = recipe_function(name)(settings)
    digest(recipe, at=f"recipe '{name}'")
    return recipe


def read_params(
    root: Path,
) -> Mapping[str, Mapping[str, Mapping[str, Any]]]:  # Any: settings values
    """`params.yaml` of a project as "domain/recipe" -> variant -> settings; empty where there is
    none.
    """
    file = root / "params.yaml"
    if not file.is_file():
        return {}
    try:
        tree = yaml.safe_load(file.read_text()) or {}
        return {
            f"{d}/{r}": variants
            for d, recipes in tree.items()
            if d not in RESERVED
            for r, variants in recipes.items()
        }
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise BadSetting(f"{file}: expected domain: recipe: variant: settings ({error})") from error


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
        settings = make_settings(recipe, scale, known[variant] or {})
        if settings.variant() != variant:
            raise BadSetting(
                f"params.yaml: {recipe}: these settings belong to variant '{settings.variant()}', "
                f"not '{variant}'; rename it"
            )
        return recipe, settings
    record = runs / recipe / variant / "settings.json"
    if record.is_file():
        return recipe, make_settings(recipe, scale, json.loads(record.read_text())["settings"])
    if variant in SCALES:
        return recipe, make_settings(recipe, variant)
    settings_class(recipe)  # an unknown recipe is the better error
    stored = (
        sorted(p.name for p in (runs / recipe).glob("*") if p.is_dir())
        if (runs / recipe).is_dir()
        else []
    )
    raise UnknownName("variant", variant, {*SCALES, *known, *stored}, where=recipe)
