"""`new plugin`: a plugin that works from the first minute, to be changed piece by piece."""

import importlib.metadata
import json
import keyword
import re
import shlex
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template
from typing import Annotated
from urllib.parse import urlsplit
from urllib.request import url2pathname

import typer

from stillhouse.domain import GROUP
from stillhouse.errors import BadSetting
from stillhouse.files import write_text

SUFFIX = ".tmpl"
ORIGIN = "direct_url.json"

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
    for line in next_steps(name, folder):
        print(f"  {line}")


def next_steps(name: str, folder: Path) -> list[str]:
    """Lines for a shell: test the new plugin, then run its recipe."""
    return [
        f"cd {shlex.quote(str(folder))}",
        "uv run pytest",
        f"uv run stillhouse run {name}/distill",
    ]


def write_plugin(name: str, into: Path) -> Path:
    """Write the plugin for domain `name` into the new folder `into/stillhouse-<name>`."""
    _check(name)
    folder = into / f"stillhouse-{name.replace('_', '-')}"
    if folder.exists():
        raise BadSetting(
            f"{folder} exists already; choose another name, or another place with --into"
        )
    words = {
        "name": name,
        "dist": folder.name,
        "package": f"stillhouse_{name}",
        "source": source(importlib.metadata.distribution("stillhouse").read_text(ORIGIN) or "{}"),
    }
    for inside, text in _templates(resources.files("stillhouse.cli") / "template"):
        path = inside.replace("package/", f"src/{words['package']}/", 1)
        write_text(folder / path, Template(text).substitute(words))
    return folder


def source(origin: str) -> str:
    """The lines of pyproject.toml that say where uv finds this very stillhouse; none where it came
    from a package index. `origin` is the direct_url.json of PEP 610, as its installer left it.
    """
    record = json.loads(origin)
    if not record:
        return ""
    url = record["url"]
    if "vcs_info" in record:
        place = {"git": url, "rev": record["vcs_info"]["commit_id"]}
    elif url.startswith("file:"):
        place = {"path": url2pathname(urlsplit(url).path)}
    else:
        place = {"url": url}
    if "subdirectory" in record:
        place["subdirectory"] = record["subdirectory"]
    # a JSON string is one of TOML, too
    words = [f"{key} = {json.dumps(value)}" for key, value in place.items()]
    words += ["editable = true"] if record.get("dir_info", {}).get("editable") else []
    return f"[tool.uv.sources]\nstillhouse = {{ {', '.join(words)} }}\n\n"


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
