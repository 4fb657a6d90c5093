"""`stillhouse flow compare`: several whole runs, side by side."""

import itertools
import os
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from stillhouse.errors import BadSetting

INTERRUPTED = 130


def compare(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE[@VARIANT]...", help="As `list` shows them.")
    ],
    scale: Annotated[str, typer.Option(help="tiny, small or paper; empty is tiny.")] = "",
    assignments: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of every run."),
    ] = [],  # noqa: B006
    vary: Annotated[
        list[str],
        typer.Option(metavar="KEY=V1,V2", help="A run for every value; may be repeated."),
    ] = [],  # noqa: B006
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    ref: Annotated[str, typer.Option(help="A commit, branch or tag.")] = "",
    runner: Annotated[
        Literal["threads", "dask", "ray"], typer.Option(help="What the runs are spread over.")
    ] = "threads",
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    address: Annotated[str, typer.Option(help="Of a Dask or Ray cluster that is there.")] = "",
) -> None:
    """Run recipes, variants or settings side by side, and compare their reports."""
    from stillhouse_flows.local import settle
    from stillhouse_flows.parameters import check_name, check_place
    from stillhouse_flows.run import INPUTS
    from stillhouse_flows.server import ensure_api

    runs: Any = requests(recipes, scale, assignments, vary)  # Any: checked by Prefect
    for each in runs:
        check_name(each["recipe"], each["scale"])
    check_place(device, ref)
    settle()
    # whoever types this may read what they may read
    os.environ.setdefault(INPUTS, os.sep)
    try:
        ensure_api()
        from stillhouse_flows.compare import compare as flow
        from stillhouse_flows.compare import spread

        chosen = flow.with_options(task_runner=spread(runner, workers, address))
        chosen(runs=runs, device=device, ref=ref)
    except KeyboardInterrupt:
        typer.echo("\nInterrupted; finished stages are in DVC's cache.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def requests(
    recipes: Sequence[str], scale: str, assignments: Sequence[str], vary: Sequence[str]
) -> list[dict[str, Any]]:  # Any: JSON values
    """One request for each recipe and each combination of the varied settings."""
    from stillhouse.settings import parse_assignments

    fixed, varied = parse_assignments(assignments), parse_assignments(vary)
    for key, values in varied.items():
        if not isinstance(values, list):
            raise BadSetting(f"--vary {key}={values}: give at least two values, as in {key}=1,2")
    changes = [
        dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())
    ]
    return [
        {"recipe": recipe, "scale": scale, "settings": {**fixed, **change}}
        for recipe in recipes
        for change in changes
    ]
