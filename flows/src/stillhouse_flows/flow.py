"""The flow `distill`: workspace -> data version -> a task a DVC stage -> report -> commit -> push.

Its tasks are derived from the generated dvc.yaml when it starts. DVC is the only cache of stages:
Prefect keeps no result. A flow run that Prefect retries opens its workspace again and goes on.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from prefect import Flow, flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import Task
from prefect.utilities.annotations import quote

from stillhouse.errors import StillhouseError
from stillhouse.places import project_root
from stillhouse_flows.data.pinned import RemoteLost, push_results
from stillhouse_flows.processes.local import settle
from stillhouse_flows.processes.querying import query
from stillhouse_flows.processes.warm import Warm, zygote
from stillhouse_flows.runs import artifacts
from stillhouse_flows.runs.board import Board, say
from stillhouse_flows.runs.parameters import (
    Device,
    Pools,
    RecipeName,
    Ref,
    ScaleName,
    SettingValues,
)
from stillhouse_flows.runs.remote import check_pools, send
from stillhouse_flows.runs.request import Request
from stillhouse_flows.runs.run import Finished, Run, opened, results_message, start
from stillhouse_flows.stages import slots
from stillhouse_flows.stages.child import StageResult
from stillhouse_flows.stages.kept import Kept
from stillhouse_flows.stages.process import Children, StageFailed, run_stage, share_cores
from stillhouse_flows.stages.project import INPUTS, StageSpec, plan
from stillhouse_flows.upkeep.failures import drop_earlier
from stillhouse_flows.upkeep.overdue import drop_overdue
from stillhouse_flows.workspace.worktree import RunWorkspace, forget, workspace

# one stage at a time: each uses every core, and beside another its latencies would not be its own
WORKERS = 1
# of one stage that does not fit the memory: each batch in 2, 4, 8 micro-batches
MEMORY_TRIES = 3
REMOTE_WAITS = (5.0, 30.0, 120.0)  # seconds before a lost remote is tried again


@dataclass(frozen=True, kw_only=True)
class Line:
    """What every task of one run works with."""

    run: Run
    children: Children
    kept: Kept
    board: Board
    device: str
    pools: Pools  # resource -> the work pool that its stages go to
    limit: str = ""  # a global concurrency limit of Prefect's, on top of the devices' locks
    micro_batches: dict[str, int] = field(default_factory=dict[str, int])  # stage -> of each batch
    crashes: dict[str, int] = field(default_factory=dict[str, int])  # stage -> so far
    seconds: dict[str, float] = field(default_factory=dict[str, float])


def threads(workers: int) -> TaskRunner[PrefectFuture[Any]]:  # Any: of whatever a task returns
    """So many threads; each waits for a stage's process."""
    # Any: its type parameter is too narrow
    made: Any = ThreadPoolTaskRunner(max_workers=workers)
    return made


def run_name() -> str:
    """ "vision-distill-tiny": the flow run's name in the UI begins as its branch does."""
    given = flow_run.parameters
    return Request(recipe=given["recipe"], scale=given["scale"]).label()


@flow(
    name="distill",
    flow_run_name=run_name,
    task_runner=threads(WORKERS),
    persist_result=False,
    on_running=[drop_overdue],
)
def distill(
    recipe: RecipeName = "vision/distill",
    scale: ScaleName = "",
    settings: SettingValues | None = None,
    device: Device = "auto",
    ref: Ref = "",
    push: bool = False,
    pools: Pools | None = None,
    gpu_limit: str = "",
) -> Finished:
    """Run a recipe in a workspace of its own: results are commits on a branch runs/*.

    Args:
        recipe: domain/recipe, or domain/recipe@variant with the settings of params.yaml.
        scale: tiny, small or paper; empty is tiny, or the variant's own.
        settings: What differs from the scale's preset, as in {"seeds": 3}.
        device: auto, cpu, cuda or cuda:1, on the machine that runs it.
        ref: A commit, branch or tag; empty takes the project's files as they are.
        push: Send what the stages leave to the DVC remote.
        pools: Where stages that want a resource go, as in {"gpu": "big-box"}: to a work pool.
        gpu_limit: A global concurrency limit of Prefect's that stages on a GPU take beside the
            device's own lock; only where the server keeps its leases in files.
    """
    settle()
    request = Request(recipe=recipe, scale=scale, settings=settings or {})
    number = str(flow_run.id).replace("-", "")[-12:]
    project = project_root()
    with (
        workspace(project, request.label(), ref=ref, number=number) as space,
        ExitStack() as stack,
    ):
        run, warm = settled(space, request, device, stack)
        name_run(run)
        log_lines(run.headline())
        check_pools(run, pools or {})
        stages = plan(space.root, run.prepared.pipeline)
        children, root = Children(warm), space.root
        line = Line(
            run=run,
            children=children,
            kept=Kept(children, stages, root=root, env=run.env, folders=run.folders),
            board=Board(len(stages)),
            device=device,
            pools=pools or {},
            limit=gpu_limit,
        )
        carried: Any = quote(line)  # Any: Prefect hands the task what it wraps, unvisited
        try:
            bring_data(carried)
            results = run_stages(line, stages)
            # before the report, which says whether the tree it describes is committed
            space.commit(results_message(run, results))
            words = write_report(carried)
        except BaseException as error:
            # a signal reaches this thread only: without this, what the others started would go on
            line.children.kill()
            if isinstance(error, Exception):
                note_failure(run, error)
            raise
        commit = space.commit(f"Report of {run.prepared.ref}", also=run.reports())
        artifacts.run_summary(run, results, line.seconds, commit)
        log_lines(
            f"Committed as {commit[:12]} on {space.branch}"
            if commit
            else "Not in git: nothing committed"
        )
        if push:
            push_to_remote(carried)
        register(run, warm)
        log_lines(words)
        return run.finished(commit)


def settled(
    space: RunWorkspace, request: Request, device: str, stack: ExitStack
) -> tuple[Run, Warm | None]:
    """The run, and a zygote of its code that lives as long as `stack`; where there can be none, for
    wrong input, nothing is left of its workspace.
    """
    recipe = request.recipe.partition("@")[0]
    try:
        env = space.environment(device)
        warm = stack.enter_context(zygote(recipe, env=env, cwd=space.root))
        run = opened(space, request, device, warm=warm)
    except StillhouseError:
        if not space.started():
            forget(space)
        raise
    if warm:
        warm.get_ready(recipe)
    return run, warm


def register(run: Run, warm: Warm | None) -> None:
    """Have `report`, `export`, `predict` and `compare` of the project find this run."""
    words = {
        "project": str(run.space.project),
        "root": str(run.space.root),
        "recipe": run.prepared.recipe,
        "variant": run.prepared.variant,
    }
    module = "stillhouse_flows.runs.registering"
    query(module, json.dumps(words), env=run.env, cwd=run.space.root, warm=warm)


def name_run(run: Run) -> None:
    """Have Prefect's UI call this run by its variant, which is known now."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), name=run.prepared.ref.replace("/", "-"))


def with_workers(workers: int) -> Flow[Any, Finished]:  # Any: its parameters
    """`distill` with so many independent stages at a time; see `share_cores`."""
    share_cores(workers)
    return distill.with_options(task_runner=threads(workers))


def log_lines(text: str) -> None:
    """To the terminal, and line by line to the run's log in the UI."""
    say(text)
    logger = get_run_logger()
    for row in text.splitlines():
        if row.strip():
            logger.info(row)


def note_failure(run: Run, error: Exception) -> None:
    """Commit what was finished, and why no more was: once, of runs that fail for one reason. Where
    nothing has begun, nothing is left.
    """
    known = isinstance(error, StillhouseError)
    reason = str(error) if known else f"{type(error).__name__}: {error}"
    # a full disk would hide the reason behind its own
    with suppress(StillhouseError):
        if run.space.started():
            run.space.commit(f"Failure of {run.prepared.ref}\n\n{reason}\n")
            drop_earlier(run.space, run.prepared.ref, reason)
        else:
            forget(run.space)


def lost_remote(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:  # Any: Prefect's
    """Whether a remote that may come back is the reason."""
    return isinstance(state.result(raise_on_failure=False), RemoteLost)


remote_task: Callable[..., Any] = partial(  # Any: Prefect's decorator
    task,
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=len(REMOTE_WAITS),
    retry_delay_seconds=list(REMOTE_WAITS),
    retry_condition_fn=lost_remote,
)


@remote_task(name="data version", task_run_name="data version")
def bring_data(line: Line) -> None:
    """Bring what the run reads at the pinned version, and freeze everything in a commit."""
    start(line.run)


@remote_task(name="push", task_run_name="push")
def push_to_remote(line: Line) -> None:
    """Send the outputs and the run cache to the DVC remote."""
    run = line.run
    log_lines(push_results(run.space.root, run.prepared.pipeline))


def run_stages(line: Line, stages: Sequence[StageSpec]) -> list[StageResult]:
    """Run every stage once those it waits for are done.

    Raises StageFailed when one failed, after the others have ended.
    """
    futures: dict[str, PrefectFuture[StageResult]] = {}
    for spec in stages:
        chosen: Task[Any, StageResult] = dvc_stage.with_options(  # Any: Prefect's parameters
            name=spec.name,
            task_run_name=spec.name,
            tags=["dvc", line.run.prepared.recipe.partition("/")[0], spec.resource],
            retries=spec.retries + MEMORY_TRIES,
            retry_condition_fn=may_heal,
        )
        waits = [futures[name] for name in spec.upstream]
        futures[spec.name] = chosen.submit(quote(spec), quote(line), wait_for=waits)
    for future in futures.values():
        future.wait()
    return _results(line, {name: future.state for name, future in futures.items()})


def _results(line: Line, states: Mapping[str, State[StageResult]]) -> list[StageResult]:
    # a stage whose upstream failed is never started: it stays pending, "NotReady"
    waiting = [name for name, state in states.items() if state.is_pending()]
    ends: list[Any] = [  # Any: a StageResult or an exception
        state.result(raise_on_failure=False) for state in states.values() if not state.is_pending()
    ]
    errors = [end for end in ends if isinstance(end, BaseException)]
    if errors:
        log_lines(f"Not run: {', '.join(waiting)}" if waiting else "Every other stage is done")
        log_lines(f"Workspace kept: {line.run.space.root}")
        raise next((error for error in errors if isinstance(error, StageFailed)), errors[0])
    return ends


@task(cache_policy=NO_CACHE, persist_result=False)
def dvc_stage(spec: StageSpec, line: Line) -> StageResult:
    """One DVC stage: its earlier results, or else a child process on the devices it needs."""
    started, run, board = time.monotonic(), line.run, line.board
    logger, progress = get_run_logger(), artifacts.Progress(run.prepared.ref, spec.name)
    resumes: list[str] = []

    def note_line(text: str) -> None:
        board.note(spec.name, text)
        logger.info(text)
        progress(text)
        if "resumed at step" in text:
            resumes.append(text[text.index("resumed at step") :])

    def waiting(text: str) -> None:
        board.write(f"           {spec.name} {text}")
        logger.warning(text)

    if spec.name != INPUTS and (found := line.kept.take(spec.name, note_line)):
        line.seconds[spec.name] = found.seconds
        board.finish(spec.name, f"{found.status:<10} {found.seconds:6.1f} s")
        artifacts.stage_table(run.prepared.ref, found)
        return found
    pool = line.pools.get(spec.resource) if spec.name != INPUTS else None
    names = slots.devices(line.device) if spec.resource == "gpu" and not pool else ()
    owner = f"{run.space.run}/{spec.name}"
    try:
        if pool:  # its results come into DVC's cache, and what follows only takes them from there
            send(spec, run, pool, children=line.children, say=note_line)
        with slots.hold(names, min(1, len(names)), owner, waiting) as held, _limit(line, held):
            result = run_stage(
                line.children,
                spec,
                root=run.space.root,
                env={**run.env, **held.environment(), **_sliced(line, spec)},
                folders=run.folders,
                log=run.folder / f"{spec.name}.log",
                say=note_line,
                files=held.files,
            )
    except StageFailed as error:
        _try_again(line, spec, error)
        raise
    line.seconds[spec.name] = time.monotonic() - started
    board.finish(spec.name, f"{result.status:<10} {line.seconds[spec.name]:6.1f} s")
    artifacts.stage_table(
        run.prepared.ref,
        result,
        resumed=f"({resumes[-1]})" if resumes else "",
        device=", ".join(held.devices),
    )
    return result


def _sliced(line: Line, spec: StageSpec) -> Mapping[str, str]:
    count = line.micro_batches.get(spec.name, 1)
    if count == 1:
        return {}
    from stillhouse.recipe import MICRO_BATCHES  # imports torch

    return {MICRO_BATCHES: str(count)}


def _limit(line: Line, held: slots.Held) -> AbstractContextManager[None]:
    if not (line.limit and held.devices):
        return nullcontext()
    # strict: without the limit of that name there would be none at all
    return concurrency(line.limit, occupy=len(held.devices), strict=True)


def _try_again(line: Line, spec: StageSpec, error: StageFailed) -> None:
    name = spec.name
    pieces, crashes = 2 * line.micro_batches.get(name, 1), line.crashes.get(name, 0) + 1
    if error.memory and pieces <= 2**MEMORY_TRIES:
        error.again, line.micro_batches[name] = True, pieces
        log_lines(f"           {error}; tried again with each batch in {pieces} micro-batches")
    elif error.crashed and crashes <= spec.retries:
        error.again, line.crashes[name] = True, crashes
        log_lines(f"           {error}; tried again from its checkpoint")
    else:
        line.board.finish(name, "FAILED")


def may_heal(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:  # Any: Prefect's
    """Whether another try may do better: a killed stage goes on at its checkpoint, one that did not
    fit the memory takes its batches in micro-batches. Wrong input stays wrong.
    """
    end = state.result(raise_on_failure=False)
    return isinstance(end, StageFailed) and end.again


@task(name="report", task_run_name="report", cache_policy=NO_CACHE, persist_result=False)
def write_report(line: Line) -> str:
    """Write the report with the workspace's code; returns its table."""
    run, lines = line.run, list[str]()
    command = ["stillhouse", "report", run.prepared.ref]
    code = line.children.run(command, env=run.env, cwd=run.space.root, say=lines.append)
    if code:
        errors = [text.removeprefix("error: ") for text in lines if text.startswith("error: ")]
        raise StillhouseError(f"report: {(errors or lines or [f'exit code {code}'])[-1]}")
    artifacts.report(run.prepared.ref, run.page)
    return "\n".join(lines)
