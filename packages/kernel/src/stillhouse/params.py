"""params.yaml: which variants of which recipes a project keeps, with their settings as text."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from stillhouse.errors import BadSetting
from stillhouse.json_files import brief

FILE = "params.yaml"
# keys of params.yaml that are no domain
RESERVED = ("gate",)
MERGE = "tag:yaml.org,2002:merge"

Params = Mapping[str, Mapping[str, Mapping[str, Any]]]  # Any: settings' values


class TextLoader(yaml.SafeLoader):
    """YAML whose values are texts, lists and mappings: what a text means is the setting's to say,
    so that `names: [no, yes]` are two names and 1, 1.0 and true no guess of YAML's.
    """

    yaml_implicit_resolvers = {"<": [(MERGE, re.compile("<<"))]}  # noqa: RUF012


def read_yaml(text: str) -> Any:  # Any: texts, lists and mappings
    """The texts, lists and mappings of a YAML document; raises ValueError, one line."""
    try:
        return yaml.load(text, Loader=TextLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("values lie too deep within one another") from error


def read_params(root: Path) -> Params:
    """`params.yaml` of a project as "domain/recipe" -> variant -> settings; empty where there is
    none. Raises BadSetting, one line, for another shape.
    """
    file = root / FILE
    if not file.is_file():
        return {}
    try:
        tree = read_yaml(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadSetting(f"{file}: not YAML ({error})") from error
    found: dict[str, Mapping[str, Mapping[str, Any]]] = {}
    for domain, recipes in _below(tree, "domain: recipe: variant: settings", file).items():
        if domain in RESERVED:
            continue
        for recipe, variants in _below(recipes, "recipe: variant: settings", file, domain).items():
            found[f"{domain}/{recipe}"] = {
                variant: _below(values, "setting: value", file, domain, recipe, variant)
                for variant, values in _below(
                    variants, "variant: settings", file, domain, recipe
                ).items()
            }
    return found


def _below(value: object, expected: str, file: Path, *keys: str) -> Mapping[str, Any]:
    """The mapping at some keys of the file; nothing there is an empty one."""
    if value in ("", "null", "~", None):
        return {}
    place = f"{file}: {'.'.join(keys)}" if keys else str(file)
    if not isinstance(value, dict):
        raise BadSetting(f"{place}: expected {expected} (got {brief(value)})")
    entries = cast("dict[object, Any]", value)
    if wrong := [key for key in entries if not isinstance(key, str)]:
        raise BadSetting(f"{place}: {brief(wrong[0])} is no name; expected {expected}")
    return cast("Mapping[str, Any]", entries)
