"""`stillhouse flow compare`: several whole runs, side by side."""

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from stillhouse.cli.results import Device
from stillhouse.errors import BadSetting
from stillhouse_flows.cli.foreground import begin, one_line, ready


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
    device: Device = "auto",
    ref: Annotated[str, typer.Option(help="A commit, branch or tag.")] = "",
    runner: Annotated[
        Literal["threads", "dask", "ray"], typer.Option(help="What the runs are spread over.")
    ] = "threads",
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    address: Annotated[str, typer.Option(help="Of a Dask or Ray cluster that is there.")] = "",
) -> None:
    """Run recipes, variants or settings side by side, and compare their reports."""
    from stillhouse_flows.runs.request import Request

    runs: Any = requests(recipes, scale, assignments, vary)  # Any: checked by Prefect
    checked = [Request(**each) for each in runs]
    begin(device, ref)
    with one_line():
        ready(checked, ref)
        from stillhouse_flows.compare import compare as flow
        from stillhouse_flows.compare import spread

        chosen = flow.with_options(task_runner=spread(runner, workers, address))
        chosen(runs=runs, device=device, ref=ref)


def _several(key: str, text: str) -> Sequence[Any]:  # Any: texts, or lists of texts
    """The values of "a,b", or of a YAML list "[a, b]" whose values may be lists themselves."""
    from stillhouse.params import read_yaml

    try:
        values: Any = read_yaml(text) if text.startswith("[") else text.split(",")
    except ValueError as error:
        raise BadSetting(f"--vary {key}={text}: not a list ({error})") from error
    if len(values) < 2:
        raise BadSetting(f"--vary {key}={text}: give at least two values, as in {key}=1,2")
    return values


def requests(
    recipes: Sequence[str], scale: str, assignments: Sequence[str], vary: Sequence[str]
) -> list[dict[str, Any]]:  # Any: JSON values
    """One request for each recipe and each combination of the varied settings."""
    from stillhouse.settings import parse_assignments

    fixed = parse_assignments(assignments)
    varied = {key: _several(key, text) for key, text in parse_assignments(vary).items()}
    changes = [
        dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())
    ]
    return [
        {"recipe": recipe, "scale": scale, "settings": {**fixed, **change}}
        for recipe in recipes
        for change in changes
    ]
