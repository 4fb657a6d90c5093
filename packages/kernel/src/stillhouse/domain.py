"""Domain discovery: plugins register one `Domain` each through the entry point group
`stillhouse.domains`.
"""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillhouse.errors import MissingExtra, PluginError, UnknownName

if TYPE_CHECKING:
    from stillhouse.recipe import Recipe
    from stillhouse.settings import Settings

GROUP = "stillhouse.domains"


@dataclass(frozen=True, kw_only=True)
class DataHome:
    """Where the public has a data set: what `stillhouse data fetch` gets it from.

    `fetch` is "module:function" of `(name: str, folder: Path, home: str, downloads: Path) -> None`:
    it writes the data set into the empty `folder` as the domain's recipes read it, with checksums
    compared, downloads kept in `downloads`. `home` is a URL that ends with "/". Without `fetch` the
    terms of `page` are the user's to accept, who gets it there.
    """

    summary: str
    license: str
    page: str
    mib: int
    home: str = ""
    fetch: str = ""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """All a plugin registers: a name and its recipes ("module:function" of a settings class),
    imported on use.

    `needs` are import names of the packages the recipes need beyond the plugin's own dependencies.
    `predict` is "module:function" of `(model: Built, inputs: Sequence[Path]) ->
    Sequence[Mapping[str, Any]]`, a table row an input; `Sequence[str]` takes texts, `Sequence[Path
    | str]` both, and keyword-only parameters are options of the command line. Empty where the
    domain has no such thing. `datasets` are the public ones that its recipes can read, by the name
    of their folder below data/.
    """

    name: str
    summary: str
    recipes: Mapping[str, str]
    needs: tuple[str, ...] = ()
    predict: str = ""
    datasets: Mapping[str, DataHome] = field(default_factory=dict[str, DataHome])

    def missing(self) -> tuple[str, ...]:
        """Those of `needs` that are not installed."""
        return tuple(need for need in self.needs if importlib.util.find_spec(need) is None)


def domains() -> Mapping[str, Domain | Exception]:
    """Every registered domain by name; one that cannot be loaded is its exception and does not stop
    the rest.
    """
    found: dict[str, Domain | Exception] = {}
    for point in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name):
        try:
            domain = point.load()
            if not isinstance(domain, Domain):
                raise PluginError(
                    f"{point.value} is a {type(domain).__name__}, not a stillhouse.Domain"
                )
            found[point.name] = domain
        except Exception as error:  # a plugin may fail in any way; it is listed, not fatal
            found[point.name] = error
    return found


def recipe_function(name: str) -> "Callable[[Settings], Recipe]":
    """The recipe function of "domain/recipe"; raises UnknownName, MissingExtra or PluginError."""
    domain_name, _, recipe_name = name.partition("/")
    every = domains()
    valid = [f"{d.name}/{r}" for d in every.values() if isinstance(d, Domain) for r in d.recipes]
    domain = every.get(domain_name)
    if isinstance(domain, Exception):
        raise PluginError(
            f"plugin '{domain_name}' cannot be loaded: {type(domain).__name__}: {domain}"
        )
    if domain is None or recipe_name not in domain.recipes:
        raise UnknownName("recipe", name, valid)
    if missing := domain.missing():
        raise MissingExtra(name, missing[0], install=f"uv sync --extra {domain_name}")
    return load_function(domain.recipes[recipe_name], where=name)


def load_function(target: str, *, where: str) -> Any:  # Any: a function a plugin names
    """The object "module:function"; raises PluginError naming what failed."""
    module, _, function = target.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{where}: '{target}' cannot be loaded: {error}") from error
