"""Pages of the site that are written when it is built: commands and settings. The Python reference
is mkdocstrings' (docs/reference/)."""

from collections.abc import Iterator
from typing import Any

from mkdocs.structure.files import File, Files

NAMED = "reference"


def on_files(files: Files, config: Any) -> Files:  # Any: mkdocs' configuration
    """mkdocs' hook: add the pages."""
    pages = {"cli.md": commands(), "settings.md": settings()}
    for name, text in pages.items():
        files.append(File.generated(config, f"{NAMED}/{name}", content=text))
    return files


def commands() -> str:
    """Every command with its options, as `--help` says."""
    import typer

    from stillhouse.cli.app import app
    from stillhouse.cli.groups import load, points

    group = typer.main.get_group(app)
    for point in points():
        group.commands.setdefault(point.name, load(point))
    parts = ["# Commands", "As `stillhouse COMMAND --help` prints them."]
    for words, command in _tree(group, ("stillhouse",)):
        context = command.context_class(command, info_name=" ".join(words))
        parts.append(f"## `{' '.join(words)}`\n\n```text\n{command.get_help(context)}\n```")
    return "\n\n".join(parts) + "\n"


def _tree(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The commands of a group, and of groups in it, by their words (Any: typer's commands)."""
    context = command.context_class(command, info_name=words[-1])
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        if hasattr(child, "list_commands"):
            yield from _tree(child, (*words, name))
        else:
            yield (*words, name), child


def settings() -> str:
    """Every recipe's settings at its three scales."""
    from stillhouse.cli.listing import takes
    from stillhouse.domain import Domain, domains
    from stillhouse.recipe import SCALES
    from stillhouse.settings import settings_class

    parts = ["# Settings", "Change one with `--set name=value`."]
    for domain in domains().values():
        if not isinstance(domain, Domain):
            raise domain
        for recipe in domain.recipes:
            cls = settings_class(f"{domain.name}/{recipe}")
            presets = [cls.at(scale) for scale in SCALES]
            properties = cls.model_json_schema()["properties"]
            lines = [f"| setting | {' | '.join(SCALES)} | meaning (and what it takes) |"]
            lines.append("|---" * (2 + len(SCALES)) + "|")
            for name, field in cls.model_fields.items():
                if name != "scale":
                    values = [_cell(getattr(preset, name)) for preset in presets]
                    text = f"{field.description} ({takes(properties[name])})"
                    lines.append(f"| `{name}` | {' | '.join(values)} | {_escaped(text)} |")
            parts.append(f"## `{domain.name}/{recipe}`\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, (tuple, list)):
        value = ",".join(map(str, value))
    text = str(value)
    return _escaped(f"`{text if len(text) <= 60 else text[:57] + '...'}`" if text else "")


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
