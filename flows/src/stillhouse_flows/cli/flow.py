"""`stillhouse flow`: runs in workspaces of their own, and the DVC pipelines they are made of."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stillhouse.cli.results import Device
from stillhouse_flows.cli import clean as clean_cli
from stillhouse_flows.cli import compare as compare_cli
from stillhouse_flows.cli import deploy as deploy_cli
from stillhouse_flows.cli.foreground import begin, one_line, ready

if TYPE_CHECKING:
    from stillhouse_flows.runs.request import Request

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
    clean_cli.clean,
    clean_cli.gc,
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
Push = Annotated[bool, typer.Option("--push", help="Send what it leaves to the DVC remote.")]


@app.command()
def run(
    recipe: RecipeName = "vision/distill",
    scale: Scale = "",
    assignments: Assignments = [],  # noqa: B006
    device: Device = "auto",
    ref: Ref = "",
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            help="Independent stages at a time, which share the CPU's cores; more than 1 disturbs "
            "what they measure.",
        ),
    ] = 1,
    push: Push = False,
    open_: Annotated[bool, typer.Option("--open", help="Show the report in the browser.")] = False,
) -> None:
    """Run a recipe as a Prefect flow in a workspace of its own; results are commits on runs/*."""
    inputs, request = _flow_inputs(recipe, scale, assignments, device, ref)
    with one_line():
        ready([request], ref)
        from stillhouse_flows.flow import with_workers

        finished = with_workers(workers)(**inputs, push=push)
    if open_:
        from stillhouse.cli.results import open_page

        open_page(finished.page)


def _flow_inputs(
    recipe: str, scale: str, assignments: list[str], device: str, ref: str
) -> "tuple[dict[str, Any], Request]":  # Any: a flow's parameters
    """The inputs of a flow, and the request in them; sets up this process for it."""
    from stillhouse.settings import parse_assignments
    from stillhouse_flows.runs.request import Request

    settings = parse_assignments(assignments)
    request = Request(recipe=recipe, scale=scale, settings=settings)
    begin(device, ref)
    _check_device(device)
    inputs = {
        "recipe": recipe,
        "scale": scale,
        "settings": settings,
        "device": device,
        "ref": ref,
    }
    return inputs, request


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
    from stillhouse.places import project_root
    from stillhouse.settings import parse_assignments
    from stillhouse_flows.runs.dry import dry_run
    from stillhouse_flows.runs.request import Request

    begin("auto", ref)  # it may read what `run` may
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
    from stillhouse.places import project_root
    from stillhouse_flows.stages.generate import drifted, write_all

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


@app.command(hidden=True)
def inputs(recipe: Annotated[str, typer.Argument(metavar="RECIPE@VARIANT")]) -> None:
    """Note settings and digests for DVC to compare: its stage `inputs`."""
    from stillhouse.places import project_root
    from stillhouse_flows.stages.outside import write_notes

    write_notes(project_root(), recipe)


@app.command()
def watch(
    recipe: RecipeName = "vision/distill",
    scale: Scale = "",
    assignments: Assignments = [],  # noqa: B006
    device: Device = "auto",
    ref: Ref = "",
    push: Push = False,
    code: Annotated[
        bool, typer.Option("--code", help="Other code counts as a change too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run though nothing has changed.")] = False,
) -> None:
    """Run a recipe when what it reads has changed; promote its student if it passes the gate."""
    inputs, request = _flow_inputs(recipe, scale, assignments, device, ref)
    with one_line():
        ready([request], ref)
        from stillhouse_flows.watch import watch as flow

        flow(**inputs, push=push, code=code, force=force)


@app.command()
def promote(
    run: Annotated[str, typer.Argument(metavar="RUN", help="As `flow history` shows it.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also when the gate refuses it, or without a gate.")
    ] = False,
    push: Push = False,
) -> None:
    """Hold a finished run against its recipe's gate and promote its student if it passes."""
    from stillhouse.places import project_root
    from stillhouse_flows.processes.hush import hush_dvc
    from stillhouse_flows.processes.local import settle
    from stillhouse_flows.promotion.promoted import judge_now

    settle()
    hush_dvc()
    judgement = judge_now(project_root(), run, force=force, push=push)
    print(judgement.sentence())
    if not judgement.promoted:
        raise typer.Exit(1)
    student = f"models/{judgement.recipe.partition('@')[0]}/student.dvc"
    print(f"To have it: git merge promoted && dvc checkout {student}")


@app.command()
def history(
    recipe: Annotated[
        str, typer.Argument(metavar="[RECIPE[@VARIANT]]", help="Only its runs.")
    ] = "",
    limit: Annotated[int, typer.Option(min=0, help="At most so many runs; 0 is all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show the runs, newest first: their data, score, and whether they were promoted or refused."""
    import json
    from dataclasses import asdict

    from stillhouse.places import project_root
    from stillhouse_flows.promotion.history import history as read

    entries = read(project_root(), recipe, limit=limit)
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries], indent=1))
    elif not entries:
        print("No runs yet. Run: stillhouse flow run")
    for entry in [] if as_json else entries:
        print(entry.line())
