"""The flow `compare`: several whole runs, each in a workspace and a process of its own, and one
comparison of their reports.

The runs go side by side on threads, or on a Dask or Ray cluster. A report travels as text: machines
of a cluster need a clone each (STILLHOUSE_ROOT), but no common folder.
"""

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.annotations import quote

from stillhouse.errors import BadSetting, MissingExtra, StillhouseError
from stillhouse.files import storage, write_text
from stillhouse.leftovers import temporary
from stillhouse.places import home, project_root
from stillhouse_flows.processes.local import settle
from stillhouse_flows.processes.querying import ERROR
from stillhouse_flows.runs.board import Board, say
from stillhouse_flows.runs.parameters import Device, Ref, RequestedRun
from stillhouse_flows.runs.request import Request
from stillhouse_flows.solo import Call
from stillhouse_flows.stages.process import Children, share_cores

Runner = Literal["threads", "dask", "ray"]
Spread = TaskRunner[PrefectFuture[Any]]  # Any: of whatever a task returns


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One run of a comparison: its name, its report.json, its branch."""

    name: str
    report: str
    branch: str


def spread(runner: Runner, workers: int, address: str = "") -> Spread:
    """So many runs at a time: in threads, or on the cluster at `address`, else on one of this
    machine's own, on 127.0.0.1. Raises MissingExtra.
    """
    share_cores(workers)
    made: Any  # Any: the task runners' own types are narrower
    if runner == "threads":
        made = ThreadPoolTaskRunner(max_workers=workers)
    elif runner == "dask":
        made = _dask(workers, address)
    else:
        made = _ray(workers, address)
    return made


def _dask(workers: int, address: str) -> Any:  # Any: of an optional package
    try:
        from prefect_dask.task_runners import DaskTaskRunner  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _missing("dask") from error
    if address:
        return DaskTaskRunner(address=address)
    here = {"n_workers": workers, "threads_per_worker": 1, "host": "127.0.0.1"}
    return DaskTaskRunner(cluster_kwargs={**here, "dashboard_address": None})


def _ray(workers: int, address: str) -> Any:  # Any: of an optional package
    # before it is imported: it would send its usage home
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from prefect_ray.task_runners import RayTaskRunner  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _missing("ray") from error
    if address:
        return RayTaskRunner(address=address)
    here = {"num_cpus": workers, "_node_ip_address": "127.0.0.1", "include_dashboard": False}
    return RayTaskRunner(init_kwargs={**here, "log_to_driver": False})


def _missing(runner: str) -> MissingExtra:
    package = f"prefect-{runner}"
    install = f"uv sync --extra {runner}   or   pip install 'stillhouse-flows[{runner}]'"
    return MissingExtra(f"--runner {runner}", package, install=install)


@flow(name="compare", persist_result=False)
def compare(runs: list[RequestedRun], device: Device = "auto", ref: Ref = "") -> str:
    """Run every request and compare the reports; returns the path of the comparison.

    Args:
        runs: As in [{"recipe": "vision/distill", "scale": "tiny", "settings": {"lr": 0.1}}, ...].
        device: auto, cpu, cuda or cuda:1, on the machine that runs it.
        ref: A commit, branch or tag; empty takes the project's files as they are.
    """
    settle()
    requests = [Request(**run.model_dump()) for run in runs]
    names = run_names(requests)
    children, board = Children(), Board(len(requests))
    say(f"{len(requests)} runs: {', '.join(names)}")
    shared: Any = quote(children) if _threaded() else None  # Any: handed over unvisited
    futures = {
        name: whole_run.with_options(name=name, task_run_name=name).submit(
            Call(request=request, device=device, ref=ref), name, _surroundings(), shared
        )
        for name, request in zip(names, requests, strict=True)
    }
    try:
        ends = {name: _end(name, future, board) for name, future in futures.items()}
    except BaseException:
        children.kill()
        raise
    done = [end for end in ends.values() if isinstance(end, Compared)]
    page = _write(done) if len(done) > 1 else None
    failed = [f"{name}: {end}" for name, end in ends.items() if isinstance(end, BaseException)]
    if failed:
        raise StillhouseError("; ".join(failed))
    assert page is not None
    return str(page)


def run_names(requests: Sequence[Request]) -> list[str]:
    """Names that distinguish the runs. Raises BadSetting when two are the same, or there are too
    few.
    """
    if len(requests) < 2:
        raise BadSetting(f"compare: give at least two runs (got {len(requests)})")
    names = [_name(request) for request in requests]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadSetting(f"compare: {twice[0]} is given twice; leave one out")
    return names


def _name(request: Request) -> str:
    changed = " ".join(f"{key}={json.dumps(value)}" for key, value in request.settings.items())
    return " ".join(filter(None, [request.recipe, request.scale, changed]))


def _threaded() -> bool:
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return context is not None and isinstance(context.task_runner, ThreadPoolTaskRunner)


def _surroundings() -> dict[str, str]:
    """What a worker of a cluster that was started elsewhere cannot know."""
    from prefect.settings import PREFECT_API_URL

    return {"PREFECT_API_URL": PREFECT_API_URL.value() or ""}


def _end(name: str, future: PrefectFuture[Compared], board: Board) -> Compared | BaseException:
    future.wait()
    end: Any = future.state.result(raise_on_failure=False)  # Any: the result or its exception
    board.finish(name, "FAILED" if isinstance(end, BaseException) else end.branch or "done")
    return end


@task(cache_policy=NO_CACHE, persist_result=False)
def whole_run(
    call: Call, name: str, surroundings: Mapping[str, str], children: Children | None
) -> Compared:
    """One run, in a process of its own."""
    lines: list[str] = []
    with temporary() as scratch:
        target = scratch / "result.json"
        code = (children or Children()).run(
            ["python", "-m", "stillhouse_flows.solo", json.dumps(asdict(call)), str(target)],
            env={**os.environ, **surroundings, "PATH": _path()},
            cwd=project_root(),
            say=lines.append,
        )
        if code == 0:
            return Compared(name=name, **json.loads(target.read_text()))
    errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    raise StillhouseError((errors or lines or [f"exit code {code}"])[-1])


def _path() -> str:
    """With this interpreter's folder first, as every child of a run has it."""
    import sys

    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _write(done: Sequence[Compared]) -> Path:
    """Keep the reports, and write and show their comparison."""
    from stillhouse.cli.tables import print_table
    from stillhouse.report import compare as compare_reports

    folder = home() / "comparisons" / uuid.uuid4().hex[:8]
    with storage(folder):
        for each in done:
            write_text(folder / _slug(each.name) / "report.json", each.report)
        tables = compare_reports([folder / _slug(each.name) for each in done]).tables()
        branches = [f"- {each.name}: `{each.branch}`" for each in done if each.branch]
        parts = [_markdown(table.title, table.head, table.rows) for table in tables]
        text = "\n".join(["# Comparison", "", *branches, "", *parts])
        write_text(folder / "comparison.md", text)
    for table in tables:
        print_table(table.title, table.head, table.rows)
    create_markdown_artifact(key="comparison", markdown=text, description=str(folder))
    say(f"Comparison: {folder / 'comparison.md'}")
    return folder / "comparison.md"


def _slug(name: str) -> str:
    return "-".join("".join(c if c.isalnum() or c in "._" else " " for c in name).split())


def _markdown(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([f"## {title}", "", *table, ""])
