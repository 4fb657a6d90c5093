"""`list` and `show`: what there is to run, and what one recipe is made of."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.completing import recipes
from stillhouse.cli.sources import summary
from stillhouse.domain import Domain, domains

if TYPE_CHECKING:
    from stillhouse.cli.target import Target

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE[@VARIANT]", help="As in vision/distill.", autocompletion=recipes
    ),
]


Json = Annotated[bool, typer.Option("--json", help="As JSON, for another program.")]


def list_(json: Json = False) -> None:
    """Domains and recipes, what is missing and how to install it."""
    found = domains()
    if json:
        from stillhouse.cli.tables import print_json

        print_json([_domain_record(name, domain) for name, domain in found.items()])
        return
    if not found:
        print(
            "No domain is installed. Run: uv sync --extra vision (or pip install stillhouse-vision)"
        )
    for name, domain in found.items():
        if isinstance(domain, Domain):
            _list_domain(name, domain)
        else:
            print(f"{name}  cannot be loaded: {one_line(domain)}")


def _domain_record(name: str, domain: Domain | Exception) -> dict[str, Any]:  # Any: JSON
    if not isinstance(domain, Domain):
        return {"domain": name, "error": one_line(domain)}
    return {
        "domain": name,
        "summary": domain.summary,
        "missing": list(domain.missing()),
        "install": install_hint(name),
        "recipes": {f"{name}/{recipe}": summary(at) for recipe, at in domain.recipes.items()},
    }


def one_line(error: Exception) -> str:
    """An exception's type and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def install_hint(domain: str) -> str:
    """How to get the packages of a domain."""
    return f"uv sync --extra {domain}"


def _list_domain(name: str, domain: Domain) -> None:
    print(f"{name}  {domain.summary}")
    if missing := domain.missing():
        print(f"  missing: {', '.join(missing)}. Run: {install_hint(name)}")
    width = max((len(f"{name}/{recipe}") for recipe in domain.recipes), default=0)
    for recipe, target in domain.recipes.items():
        print(f"  {f'{name}/{recipe}':<{width}}  {summary(target)}".rstrip())


def show(
    recipe: RecipeName,
    scale: Annotated[str, typer.Option(help="tiny, small or paper.")] = "",
    assignments: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE")] = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Stages, settings, paper and cost of a recipe."""
    from stillhouse.cli.target import make_target

    target = make_target(recipe, scale, assignments)
    if json:
        from stillhouse.cli.tables import print_json

        print_json(_record(target))
        return
    _show_head(target)
    _show_settings(target)
    _show_stages(target)


def _record(target: "Target") -> dict[str, Any]:  # Any: JSON
    import inspect

    from stillhouse.domain import recipe_function

    cls = type(target.settings)
    properties = cls.model_json_schema()["properties"]
    values = target.settings.model_dump(mode="json")
    return {
        "recipe": target.name,
        "variant": target.variant,
        "reference": target.recipe.reference,
        "text": inspect.getdoc(recipe_function(target.name)) or "",
        "notes": list(target.recipe.notes),
        "settings": {
            name: {
                "value": values[name],
                "meaning": field.description or "",
                "takes": takes(properties[name]),
            }
            for name, field in cls.model_fields.items()
        },
        "stages": [
            {
                "name": stage.name,
                "kind": type(stage).__name__,
                "reads": dict(stage.inputs),
                "leaves": list(stage.outputs),
                "seconds": target.seconds(stage.name),
            }
            for stage in target.recipe.stages
        ],
    }


def _show_head(target: "Target") -> None:
    import inspect

    from stillhouse.domain import recipe_function

    print(f"{target.name}@{target.variant}  {target.recipe.reference}\n")
    if text := inspect.getdoc(recipe_function(target.name)):
        print(text + "\n")
    for note in target.recipe.notes:
        print(f"Note: {note}")


def _show_settings(target: "Target") -> None:
    from stillhouse.cli.tables import print_table
    from stillhouse.recipe import SCALES

    cls = type(target.settings)
    presets = {scale: cls.at(scale) for scale in SCALES}
    properties = cls.model_json_schema()["properties"]
    rows = [
        (
            name,
            *(_brief(getattr(preset, name)) for preset in presets.values()),
            f"{field.description or ''} ({takes(properties[name])})",
        )
        for name, field in cls.model_fields.items()
        if name != "scale"
    ]
    print_table(
        "Settings (change one with --set name=value)",
        ("setting", *SCALES, "meaning (and what it takes)"),
        rows,
    )
    if changed := target.settings.overrides():
        print("Here: " + ", ".join(f"{key}={_brief(value)}" for key, value in changed.items()))


def takes(schema: Mapping[str, Any]) -> str:  # Any: JSON
    """What a setting takes, in words, from its JSON schema: type, choices, range."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if "anyOf" in schema:
        kinds = [takes(one) for one in schema["anyOf"]]
        return " or ".join(kinds)
    match schema.get("type"):
        case "array":
            fixed = schema.get("prefixItems")
            inner = takes(fixed[0] if fixed else schema["items"])
            return f"{len(fixed)} of: {inner}" if fixed else f"list of: {inner}"
        case "object":
            return "{name: number}"
        case "boolean":
            return "true | false"
        case "integer" | "number" as kind:
            word = "whole number" if kind == "integer" else "number"
            return " ".join([word, *_bounds(schema)])
        case "null":
            return "none"
        case _:
            return "text"


def _bounds(schema: Mapping[str, Any]) -> list[str]:  # Any: JSON
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]


def _show_stages(target: "Target") -> None:
    from stillhouse.cli.tables import duration, print_table

    rows: list[tuple[str, ...]] = []
    total, finished = 0.0, 0
    for stage in target.recipe.stages:
        seconds = target.seconds(stage.name)
        total, finished = total + (seconds or 0.0), finished + (seconds is not None)
        reads = ", ".join(f"{port}={ref}" for port, ref in stage.inputs.items())
        took = "" if seconds is None else duration(seconds)
        rows.append((stage.name, type(stage).__name__, reads, ", ".join(stage.outputs), took))
    print_table("Stages", ("stage", "kind", "reads", "leaves", "took here"), rows)
    if finished:
        print(f"Cost measured here: {duration(total)} for {finished} of {len(rows)} stages.")


def _brief(value: object) -> str:
    match value:
        case tuple() | list():
            return ",".join(map(str, value)) or "-"  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        case "" | None:
            return "-"
        case _:
            return str(value)
