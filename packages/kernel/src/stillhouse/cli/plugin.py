"""`new plugin`: a plugin that works from the first minute, to be changed piece by piece."""

import importlib.metadata
import keyword
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from stillhouse.domain import GROUP
from stillhouse.errors import BadSetting
from stillhouse.files import write_text

SUFFIX = ".tmpl"

new = typer.Typer(help="Start something new from a template.", rich_markup_mode=None)


@new.callback()
def _new() -> None:  # pyright: ignore[reportUnusedFunction]
    """Start something new from a template."""


@new.command()
def plugin(
    name: Annotated[str, typer.Argument(help="The domain: lower-case letters, digits and '_'.")],
    into: Annotated[Path, typer.Option(help="Where to put the new folder.")] = Path(),
) -> None:
    """Write a complete plugin package to start from."""
    folder = write_plugin(name, into)
    print(f"Wrote {folder}. Next:")
    print(f"  cd {folder}")
    print("  uv pip install -e .")
    print("  pytest")
    print(f"  stillhouse run {name}/distill")


def write_plugin(name: str, into: Path) -> Path:
    """Write the plugin for domain `name` into the new folder `into/stillhouse-<name>`."""
    _check(name)
    folder = into / f"stillhouse-{name.replace('_', '-')}"
    if folder.exists():
        raise BadSetting(
            f"{folder} exists already; choose another name, or another place with --into"
        )
    words = {"name": name, "dist": folder.name, "package": f"stillhouse_{name}"}
    for inside, text in _templates(resources.files("stillhouse.cli") / "template"):
        path = inside.replace("package/", f"src/{words['package']}/", 1)
        write_text(folder / path, Template(text).substitute(words))
    return folder


def _check(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise BadSetting(
            f"plugin name '{name}': use lower-case letters, digits and '_', beginning with a letter"
        )
    taken = importlib.metadata.entry_points(group=GROUP).names
    if name in taken:
        raise BadSetting(
            f"plugin name '{name}' is taken by an installed domain: {', '.join(sorted(taken))}"
        )


def _templates(folder: Traversable, inside: str = "") -> list[tuple[str, str]]:
    """(relative path without the suffix, text) of every template file, in order."""
    found: list[tuple[str, str]] = []
    for item in sorted(folder.iterdir(), key=lambda i: i.name):
        if item.is_dir():
            found += _templates(item, f"{inside}{item.name}/")
        elif item.name.endswith(SUFFIX):
            found.append((inside + item.name.removesuffix(SUFFIX), item.read_text()))
    return found
