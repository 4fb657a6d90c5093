"""`run` and `stage`: the recipe or one stage of it, resumed where it was stopped."""

import contextlib
import os
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from stillhouse.cli.listing import RecipeName
from stillhouse.cli.planning import expectation, show_plan
from stillhouse.cli.results import Device, Open, json_report, open_page, print_report
from stillhouse.cli.stopping import Stopping
from stillhouse.cli.watching import Hooks, Track, tracked, watch_of
from stillhouse.errors import BadSetting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stillhouse.cli.progress import Display
    from stillhouse.cli.target import Target
    from stillhouse.recipe import Stage
    from stillhouse.runs import Runs

Engine = Annotated[
    str,
    typer.Option(
        help="Where the clients of a federated stage run: local (this process) or flower; "
        "default: $STILLHOUSE_FEDERATED_ENGINE, else local."
    ),
]

Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that read and decode large data; the results are the same by any number. "
        "Default: one less than the processors.",
    ),
]
Verify = Annotated[
    bool,
    typer.Option("--verify", help="Hash every byte of the inputs, also of unchanged large files."),
]


def run(
    recipe: RecipeName,
    scale: Annotated[str, typer.Option(help="tiny, small or paper.")] = "",
    assignments: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated."),
    ] = [],  # noqa: B006
    fast: Annotated[
        bool,
        typer.Option(
            "--fast",
            help="The same training faster, to the same accuracy but not to the same bits: "
            "--set precision=fast.",
        ),
    ] = False,
    device: Device = "auto",
    nproc: Annotated[
        int, typer.Option(min=1, help="Processes a training stage is spread over.")
    ] = 1,
    shard: Annotated[
        list[str],
        typer.Option(
            metavar="ROLE",
            help="A frozen role whose weights are shared out among the processes of --nproc; may "
            "be repeated.",
        ),
    ] = [],  # noqa: B006
    engine: Engine = "",
    hooks: Hooks = [],  # noqa: B006
    track: Track = "",
    workers: Workers = None,
    verify: Verify = False,
    report: Annotated[bool, typer.Option(help="Write the report when all is done.")] = True,
    open_: Open = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which stages would run and for how long.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Progress and result as lines of JSON.")
    ] = False,
) -> None:
    """Run a recipe, skipping what is up to date, and write its report."""
    from stillhouse.cli.target import make_target
    from stillhouse.inputs import check_present
    from stillhouse.runs import outside_refs

    read_data_by(workers, verify=verify)
    given = [*assignments, *(_fast(recipe, assignments) if fast else [])]
    target = make_target(recipe, scale, given)
    check_present(outside_refs(target.recipe), target.root)
    chosen = choose_device(device)
    check_shard(shard, nproc, target.recipe.stages)
    place = choose_engine(engine, target.recipe.stages)
    if hooks and nproc > 1:
        raise BadSetting("--hook watches trainings of one process; leave out --nproc")
    watch = watch_of(hooks)
    if dry_run:
        show_plan(target, json=json)
        return
    if not json:
        print(f"{target.ref} on {chosen}, in {target.runs().folder}{expectation(target)}")
    stopping = Stopping()
    try:
        with stopping:
            with _display(target, json=json) as display:
                runs = target.runs(device=chosen, engine=place, observe=display)
                runs = replace(runs, watch=watch)
                with tracked(track, runs, target.settings.model_dump(mode="json")) as runs:
                    _run_stages(target, runs, nproc, shard, display, stopping)
            if report:
                page = json_report(target) if json else print_report(target)
                if open_:
                    open_page(page)
            stopping.check()
    except KeyboardInterrupt:
        words = ["stillhouse", "run", recipe, *(["--scale", scale] if scale else [])]
        words += [word for pair in assignments for word in ("--set", pair)]
        words += ["--fast"] if fast else []
        words += ["--nproc", str(nproc)] if nproc > 1 else []
        words += [word for role in shard for word in ("--shard", role)]
        words += ["--engine", engine] if engine else []
        words += [word for hook in hooks for word in ("--hook", hook)]
        words += ["--track", track] if track else []
        words += ["--workers", str(workers)] if workers is not None else []
        words += ["--verify"] if verify else []
        again = shlex.join(words)
        print(f"\nInterrupted; what is finished is kept. Go on with: {again}", file=sys.stderr)
        raise typer.Exit(stopping.exit_code) from None


def _fast(recipe: str, assignments: "Sequence[str]") -> list[str]:
    """What --fast assigns; raises BadSetting where the recipe or another assignment forbids it."""
    from stillhouse.settings import parse_assignments, settings_class

    if "precision" in parse_assignments(assignments):
        raise BadSetting("--fast is --set precision=fast; leave out one of the two")
    if "precision" not in settings_class(recipe.partition("@")[0]).model_fields:
        raise BadSetting(f"{recipe}: --fast needs a setting 'precision', and this recipe has none")
    return ["precision=fast"]


def _run_stages(
    target: "Target",
    runs: "Runs",
    nproc: int,
    shard: "Sequence[str]",
    display: "Display",
    stopping: Stopping,
) -> None:
    from stillhouse.cli.launch import run_distributed
    from stillhouse.runs import run_stage

    runs.note_settings(target.settings)
    for stage in target.recipe.stages:
        display.begin(stage.name)
        if nproc > 1 and stage.distributed:
            run_distributed(
                target,
                stage.name,
                device=runs.device,
                nproc=nproc,
                shard=shard,
                observe=runs.observe,
            )
        else:
            run_stage(target.recipe, stage, runs)
        stopping.check()


def _display(
    target: "Target", *, json: bool = False
) -> "contextlib.AbstractContextManager[Display]":
    from stillhouse.cli.progress import Bars, JsonLines, Lines

    if json:
        return contextlib.nullcontext(JsonLines())
    batches = _batches(target)
    return Bars(batches) if sys.stdout.isatty() else contextlib.nullcontext(Lines(batches))


def _batches(target: "Target") -> dict[str, int]:
    from stillhouse.stages.train import Train

    return {s.name: s.batch for s in target.recipe.stages if isinstance(s, Train)}


def stage(
    recipe: RecipeName,
    stage: Annotated[str, typer.Argument(help="One of the stages that `show` lists.")],
    device: Device = "auto",
    engine: Engine = "",
    hooks: Hooks = [],  # noqa: B006
    track: Track = "",
    workers: Workers = None,
    verify: Verify = False,
    json: Annotated[
        bool, typer.Option("--json", help="Progress as lines of JSON, for another program.")
    ] = False,
    as_run: Annotated[
        bool,
        typer.Option("--as-run", help="Settings of the last `run`, whatever params.yaml says."),
    ] = False,
    settings: Annotated[
        str, typer.Option(metavar="JSON", help="Every setting, whatever was run; for torchrun.")
    ] = "",
) -> None:
    """Run one stage of a recipe, as DVC, Prefect and torchrun do; its inputs must be there."""
    from stillhouse import parallel
    from stillhouse.cli.progress import Lines, json_line
    from stillhouse.cli.ranks import end_with_agent
    from stillhouse.cli.target import own_target, staged_target, target_of
    from stillhouse.recipe import silent
    from stillhouse.runs import run_stage

    end_with_agent()
    read_data_by(workers, verify=verify)
    if settings:
        target = target_of(recipe, settings)
    else:
        target = own_target(recipe) if as_run else staged_target(recipe)
    chosen = target.recipe.stage(stage)
    rank, nproc = parallel.world()
    lines = Lines(_batches(target))
    lines.begin(stage)
    observe = silent if rank else json_line if json else lines
    place = choose_engine(engine, [chosen])
    runs = target.runs(device=choose_device(device), engine=place, observe=observe)
    runs = replace(runs, watch=watch_of(hooks))
    if rank == 0:
        runs.note_settings(target.settings)
    stopping = Stopping()
    try:
        # a rank that waits for the others in torch could not act on a signal
        with (
            stopping if nproc == 1 else contextlib.nullcontext(),
            _tracked(track, runs, target, nproc) as runs,
        ):
            run_stage(target.recipe, chosen, runs)
            stopping.check()
    except KeyboardInterrupt:
        print("\nInterrupted; what is finished is kept.", file=sys.stderr)
        raise typer.Exit(stopping.exit_code) from None
    finally:
        parallel.leave()


def _tracked(
    name: str, runs: "Runs", target: "Target", nproc: int
) -> "contextlib.AbstractContextManager[Runs]":
    """As `tracked`; the processes of one training are tracked by who started them."""
    if nproc > 1:
        return contextlib.nullcontext(runs)
    return tracked(name, runs, target.settings.model_dump(mode="json"))


def choose_engine(name: str, stages: "Sequence[Stage]") -> str:
    """The engine of the federations among `stages`, as the option or the environment has it; says
    so where an option finds none. Raises UnknownName or MissingExtra before anything runs.
    """
    from stillhouse.federated import Federate
    from stillhouse.federated.engines import check_engine
    from stillhouse.recipe import ENGINE

    chosen = name or os.environ.get(ENGINE) or "local"
    if any(isinstance(stage, Federate) for stage in stages):
        check_engine(chosen)
        return chosen
    if name:
        print(f"--engine {name}: no federated stage here; ignored", file=sys.stderr)
    return "local"


def read_data_by(workers: int | None, *, verify: bool) -> None:
    """Set for this process and its children how data are read."""
    from stillhouse.memo import VERIFY
    from stillhouse.recipe import WORKERS

    if workers is not None:
        os.environ[WORKERS] = str(workers)
    if verify:
        os.environ[VERIFY] = "1"


def check_shard(roles: "Sequence[str]", nproc: int, stages: "Sequence[Stage]") -> None:
    """Raises BadSetting or UnknownName for roles that no training can share out."""
    from stillhouse.errors import UnknownName
    from stillhouse.stages.train import Train

    if roles and nproc == 1:
        raise BadSetting(f"--shard {roles[0]}: one process has nobody to share with; add --nproc 2")
    trainings = [stage for stage in stages if isinstance(stage, Train)]
    frozen = {
        role
        for s in trainings
        # a base alone is no role
        for role in {*s.inputs} - {*s.data_ports} - {*s.outputs} - {*s.bases.values()}
    }
    for role in roles:
        if role not in frozen:
            raise UnknownName("frozen role", role, frozen, where="--shard")


def choose_device(name: str) -> str:
    """ "cpu" or "cuda[:n]"; raises BadSetting when torch has no such device."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    kind, _, index = name.partition(":")
    if name == "cpu" or (
        kind == "cuda" and count and (not index or (index.isdigit() and int(index) < count))
    ):
        return name
    here = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
    raise BadSetting(
        f"--device {name}: torch {torch.__version__} has {here} here; `stillhouse doctor` says more"
    )
