"""Command groups of other packages (entry points `stillhouse.commands`), imported when used."""

import importlib.metadata
from typing import Any

import typer
from typer.core import TyperCommand

from stillhouse.cli.sources import summary
from stillhouse.errors import PluginError

GROUP = "stillhouse.commands"


class Deferred(TyperCommand):
    """Stands for a command group in the help and gives way to it when used."""

    def __init__(self, point: importlib.metadata.EntryPoint) -> None:
        super().__init__(point.name, help=summary(point.value) or f"from {point.value}")
        self.point = point

    # Any: typer's own command and context classes are private to it
    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        return load(self.point).make_context(info_name, args, parent=parent, **extra)


def points() -> tuple[importlib.metadata.EntryPoint, ...]:
    """The registered groups, by name."""
    return tuple(sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: p.name))


def deferred_groups() -> dict[str, Deferred]:
    """A stand-in for each registered group, by name."""
    return {point.name: Deferred(point) for point in points()}


def load(
    point: importlib.metadata.EntryPoint,
) -> Any:  # Any: typer's own group class is private to it
    """The group of an entry point; raises PluginError with the reason in one line."""
    try:
        app = point.load()
    except Exception as error:  # another package may fail in any way
        raise PluginError(
            f"command group '{point.name}' ({point.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(app, typer.Typer):
        raise PluginError(
            f"command group '{point.name}': {point.value} is a {type(app).__name__}, "
            "not a typer.Typer"
        )
    return typer.main.get_group(app)
