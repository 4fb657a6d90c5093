"""What the grids over a recipe's settings have in common: a run of one cell, and its scores."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stillhouse.cli.target import Target
from stillhouse.errors import StillhouseError
from stillhouse.places import project_root
from stillhouse.recipe import Event
from stillhouse.report.collect import Finished
from stillhouse.runs import run_recipe
from stillhouse.settings import make_recipe, make_settings

Record = Mapping[str, Any]  # Any: JSON


def run_cell(recipe: str, scale: str, given: Record, *, device: str = "cpu") -> Target:
    """Run what is left of a recipe at these settings, in runs/ under a variant of its own. Killed,
    the same call goes on in the stage where it was.
    """
    settings = make_settings(recipe, scale, given)
    made = make_recipe(recipe, settings)
    target = Target(name=recipe, settings=settings, recipe=made, root=project_root())
    runs = target.runs(device=device, observe=tell)
    runs.note_settings(settings)
    run_recipe(made, runs)
    return target


def rows_of(target: Target, done: Mapping[str, Finished], names: Sequence[str]) -> Record:
    """The scores `names` of each row, a list of seeds."""
    return {
        title: {
            name: [done[stage].scores[name] for stage in row.stages if name in done[stage].scores]
            for name in names
        }
        for title, row in target.recipe.rows.items()
    }


def tell(event: Event) -> None:
    """A line a finished stage or resumption."""
    if event.text not in ("", "checkpoint"):
        print(f"  {event.stage}: {event.text}", flush=True)


def guarded(main: Callable[[], None]) -> None:
    """Run `main`; a user's mistake is one line, and exit code 2."""
    try:
        main()
    except StillhouseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
