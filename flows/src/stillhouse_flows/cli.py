"""`stillhouse flow`: runs in workspaces of their own, and the DVC pipelines they are made of."""

from typing import Annotated

import typer

from stillhouse_flows import compare_cli, deploy_cli

app = typer.Typer(
    name="flow",
    help=__doc__,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

for command in (
    deploy_cli.server,
    deploy_cli.serve,
    deploy_cli.deploy,
    deploy_cli.worker,
    compare_cli.compare,
):
    app.command()(command)

RecipeName = Annotated[
    str, typer.Argument(metavar="[RECIPE[@VARIANT]]", help="As `list` shows it.")
]
Scale = Annotated[str, typer.Option(help="tiny, small or paper; empty is tiny.")]
Assignments = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated."),
]
Ref = Annotated[
    str, typer.Option(help="A commit, branch or tag; without it, your files as they are.")
]
INTERRUPTED = 130


@app.command()
def run(
    recipe: RecipeName = "vision/distill",
    scale: Scale = "",
    assignments: Assignments = [],  # noqa: B006
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    ref: Ref = "",
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Independent stages at a time; more than 1 disturbs what they measure."
        ),
    ] = 1,
) -> None:
    """Run a recipe as a Prefect flow in a workspace of its own; results are commits on runs/*."""
    from stillhouse.settings import parse_assignments
    from stillhouse_flows.local import settle
    from stillhouse_flows.server import ensure_api

    settings = parse_assignments(assignments)
    _check_device(device)
    settle()
    try:
        ensure_api()
        from stillhouse_flows.flow import with_workers

        with_workers(workers)(recipe=recipe, scale=scale, settings=settings, device=device, ref=ref)
    except KeyboardInterrupt:
        typer.echo(
            "\nInterrupted; finished stages are in DVC's cache, so the next run goes on.", err=True
        )
        raise typer.Exit(INTERRUPTED) from None


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu"):
        from stillhouse.cli.running import choose_device  # imports torch

        choose_device(device)


@app.command()
def plan(
    recipe: RecipeName = "vision/distill",
    scale: Scale = "",
    assignments: Assignments = [],  # noqa: B006
    ref: Ref = "",
) -> None:
    """Show which stages of a run would run, and which DVC would bring back."""
    from stillhouse.runs import project_root
    from stillhouse.settings import parse_assignments
    from stillhouse_flows.dry import dry_run
    from stillhouse_flows.local import settle
    from stillhouse_flows.prepare import Request

    settle()
    request = Request(recipe=recipe, scale=scale, settings=parse_assignments(assignments))
    planned = dry_run(project_root(), request, ref=ref)
    for each in planned:
        why = f"after {each.because}" if each.because else "not in DVC's cache"
        print(f"  {each.stage.name:<22} {'unchanged' if each.cached else f'would run ({why})'}")
    runs = sum(not each.cached for each in planned)
    print(f"{runs} of {len(planned)} stages would run.")


@app.command()
def dvc(
    check: Annotated[
        bool,
        typer.Option("--check", help="Change nothing; exit with 2 when a file is out of date."),
    ] = False,
) -> None:
    """Write pipelines/<domain>/<recipe>/<variant>/dvc.yaml for every variant in params.yaml."""
    from stillhouse.runs import project_root
    from stillhouse_flows.generate import drifted, write_all

    root = project_root()
    differ = drifted(root) if check else write_all(root)
    for path in differ:
        state = "out of date" if check else "written" if path.exists() else "removed"
        print(f"{state}: {path.relative_to(root)}")
    if check and differ:
        typer.echo("error: pipelines/ differs from the recipes. Run: stillhouse flow dvc", err=True)
        raise typer.Exit(2)
    if not differ:
        print("pipelines/ is up to date.")
