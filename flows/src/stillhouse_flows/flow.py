"""The flow `distill`: workspace -> data version -> one task a DVC stage -> report -> commit.

Its tasks are derived from the generated dvc.yaml when it starts. DVC is the only cache of stages:
Prefect keeps no result.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefect import Flow, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import Task
from prefect.utilities.annotations import quote

from stillhouse.errors import StillhouseError
from stillhouse.runs import project_root
from stillhouse_flows.board import Board, say
from stillhouse_flows.child import StageResult
from stillhouse_flows.overdue import drop_overdue
from stillhouse_flows.prepare import Request
from stillhouse_flows.process import Children, StageFailed, run_stage
from stillhouse_flows.project import StageSpec, plan
from stillhouse_flows.remote import check_pools, send
from stillhouse_flows.run import Run, opened, results_message, start
from stillhouse_flows.worktree import workspace

# one stage at a time: each uses every core, and beside another its latencies would not be its own
WORKERS = 1


@dataclass(frozen=True, kw_only=True)
class Line:
    """What every stage task of one run works with."""

    run: Run
    children: Children
    board: Board
    pools: Mapping[str, str]  # resource -> the work pool that its stages go to


def threads(workers: int) -> TaskRunner[PrefectFuture[Any]]:  # Any: of whatever a task returns
    """So many threads; each waits for a stage's process."""
    # Any: its type parameter is too narrow
    made: Any = ThreadPoolTaskRunner(max_workers=workers)
    return made


@flow(
    name="distill",
    task_runner=threads(WORKERS),
    persist_result=False,
    validate_parameters=False,
    on_running=[drop_overdue],
)
def distill(
    recipe: str = "vision/distill",
    scale: str = "",
    settings: dict[str, Any] | None = None,  # Any: JSON values
    device: str = "auto",
    ref: str = "",
    pools: dict[str, str] | None = None,
) -> str:
    """Run RECIPE[@VARIANT] in a workspace of its own; returns the path of its report.html.

    `pools`, as {"gpu": "big-box"}, sends the stages that want a resource to a work pool.
    """
    request = Request(recipe=recipe, scale=scale, settings=settings or {})
    with workspace(project_root(), request.label(), ref=ref) as space:
        run = opened(space, request, device)
        say(run.headline())
        check_pools(run, pools or {})
        start(run)
        stages = plan(space.root, run.prepared.pipeline)
        line = Line(run=run, children=Children(), board=Board(len(stages)), pools=pools or {})
        carried: Any = quote(line)  # Any: Prefect hands the task what it wraps, unvisited
        try:
            results = run_stages(line, stages)
            # before the report, which says whether the tree it describes is committed
            space.commit(results_message(run, results), also=run.numbers())
            words = write_report(carried)
        except BaseException:
            # a signal reaches this thread only: without this, what the others started would go on
            line.children.kill()
            raise
        commit = space.commit(f"Report of {run.prepared.ref}", also=run.reports())
        say(
            f"Committed as {commit[:12]} on {space.branch}"
            if commit
            else "Not in git: nothing committed"
        )
        say(words)
        return str(run.page)


def with_workers(workers: int) -> Flow[Any, str]:  # Any: its parameters
    """`distill` with so many independent stages at a time."""
    return distill.with_options(task_runner=threads(workers))


def run_stages(line: Line, stages: Sequence[StageSpec]) -> list[StageResult]:
    """Run every stage once those it waits for are done.

    Raises StageFailed when one failed, after the others have ended.
    """
    futures: dict[str, PrefectFuture[StageResult]] = {}
    for spec in stages:
        chosen: Task[Any, StageResult] = dvc_stage.with_options(  # Any: Prefect's parameters
            name=spec.name,
            task_run_name=spec.name,
            retries=spec.retries,
            retry_condition_fn=crashed,
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
        say(f"Not run: {', '.join(waiting)}" if waiting else "Every other stage is done")
        say(f"Workspace kept: {line.run.space.root}")
        raise next((error for error in errors if isinstance(error, StageFailed)), errors[0])
    return ends


@task(cache_policy=NO_CACHE, persist_result=False)
def dvc_stage(spec: StageSpec, line: Line) -> StageResult:
    """One DVC stage in a child process."""
    started, run, board = time.monotonic(), line.run, line.board
    try:
        if pool := line.pools.get(spec.resource):
            send(spec, run, pool, children=line.children, say=partial(board.note, spec.name))
        result = run_stage(
            line.children,
            spec,
            root=run.space.root,
            env=run.env,
            folders=run.folders,
            log=run.folder / f"{spec.name}.log",
            say=lambda text: board.note(spec.name, text),
        )
    except StageFailed:
        board.finish(spec.name, "FAILED")
        raise
    board.finish(spec.name, f"{result.status:<10} {time.monotonic() - started:6.1f} s")
    return result


def crashed(_task: Task[Any, Any], _run: TaskRun, state: State[Any]) -> bool:  # Any: Prefect's
    """Whether another try may do better: a killed stage goes on at its checkpoint."""
    end = state.result(raise_on_failure=False)
    return isinstance(end, StageFailed) and end.crashed


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def write_report(line: Line) -> str:
    """Write the report with the workspace's code; returns its table."""
    run, said = line.run, list[str]()
    command = ["stillhouse", "report", run.prepared.ref]
    code = line.children.run(command, env=run.env, cwd=run.space.root, say=said.append)
    if code:
        errors = [text.removeprefix("error: ") for text in said if text.startswith("error: ")]
        raise StillhouseError(f"report: {(errors or said or [f'exit code {code}'])[-1]}")
    return "\n".join(said)
