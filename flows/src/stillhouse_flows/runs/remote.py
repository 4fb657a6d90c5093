"""Stages on other machines, which share nothing but the git remote and the DVC remote.

`send` hands one stage of a run to a work pool and brings its results into DVC's cache; the flow
`stage` is what a worker of the pool runs, on its own clone, at the run's start commit.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from stillhouse.errors import BadSetting, MissingData, StillhouseError
from stillhouse.places import project_root
from stillhouse_flows.data.pinned import remote
from stillhouse_flows.data.share import Errand
from stillhouse_flows.processes.querying import query
from stillhouse_flows.runs.board import QUIET_SECONDS
from stillhouse_flows.runs.parameters import Commit, Device, Pools, RunBranch, StageName
from stillhouse_flows.runs.request import Request
from stillhouse_flows.runs.run import Run, opened
from stillhouse_flows.stages import slots
from stillhouse_flows.stages.outside import leads_out
from stillhouse_flows.stages.process import Children, Say, StageFailed, run_stage
from stillhouse_flows.stages.project import StageSpec, plan
from stillhouse_flows.workspace.git import git, head, ignored
from stillhouse_flows.workspace.worktree import RunWorkspace, workspace

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

GIT_REMOTE = "origin"
POLL_SECONDS = 2.0


def check_pools(run: Run, pools: Pools) -> None:
    """Before anything runs: what other machines need must be able to reach them.

    Raises BadSetting, or MissingData where there is no DVC remote.
    """
    if not pools:
        return
    space = run.space
    if not space.branch:
        raise BadSetting(f"pools: {space.project} is not in git, the way to other machines")
    if GIT_REMOTE not in git(space.root, "remote").split():
        raise BadSetting(
            f"pools: {space.project} has no git remote '{GIT_REMOTE}' to send runs by. "
            f"Run there: git remote add {GIT_REMOTE} URL"
        )
    for name in run.prepared.files:
        if leads_out(name) or ignored(space.root, space.root / name):
            raise BadSetting(
                f"pools: 'file:{name}' is on this machine only; put it under data/ and run: "
                "stillhouse data add"
            )
    if remote(space.root) is None:
        raise MissingData(
            f"pools: {space.project} has no default DVC remote to share stages by. "
            "Run there: dvc remote add --default NAME URL"
        )


def send(spec: StageSpec, run: Run, pool: str, *, children: Children, say: Say) -> None:
    """Have a worker of `pool` run the stage, and bring its results into DVC's cache.

    Nothing is sent where they are there already. Raises StageFailed as a stage here would.
    """
    space = run.space
    if _do("find", spec.address, run):
        return
    git(space.root, "push", "--quiet", GIT_REMOTE, f"HEAD:refs/heads/{space.branch}")
    _do("give-data", spec.address, run)
    for name in spec.upstream:
        _do("give", f"{spec.address.rpartition(':')[0]}:{name}", run)
    lock = (space.root / spec.address.rpartition(":")[0]).with_suffix(".lock")
    words: dict[str, Any] = {  # Any: JSON values
        "request": asdict(run.request),
        "branch": space.branch,
        "commit": head(space.root),
        "name": spec.name,
        "lock": lock.read_text() if lock.is_file() else "",
    }
    ended = _await(_start(pool, words, f"{space.run} {spec.name}"), pool, spec, children, say)
    state = ended.state
    assert state is not None
    if not state.is_completed():
        reason = (state.message or state.type.value).removeprefix(
            "Flow run encountered an exception: "
        )
        reason = reason.removeprefix("StageFailed: ")
        where = "" if reason.startswith("stage '") else f"stage '{spec.name}': "
        raise StageFailed(f"{where}{reason} (on pool {pool})", crashed=state.is_crashed())
    if not _do("find", spec.address, run):
        raise StageFailed(
            f"stage '{spec.name}': done on pool {pool}, but its results are not found by what it "
            "read here; do both machines have the same code and data?",
            crashed=False,
        )


def _start(pool: str, words: Mapping[str, Any], name: str) -> "FlowRun":  # Any: JSON values
    try:
        sent: Any = run_deployment(  # Any: or a coroutine, in asynchronous code
            f"stage/{pool}", parameters=dict(words), flow_run_name=name, timeout=0
        )
        return sent
    except ObjectNotFound as error:
        raise StillhouseError(
            f"no worker has offered stages in the pool '{pool}'. "
            f"Run on that machine, in its clone: stillhouse flow worker {pool}"
        ) from error


def _await(sent: "FlowRun", pool: str, spec: StageSpec, children: Children, say: Say) -> "FlowRun":
    """The run when it has ended; a stopped run here stops it there."""
    noted = time.monotonic()
    with get_client(sync_client=True) as client:
        while sent.state is None or not sent.state.is_final():
            if children.closed:
                client.set_flow_run_state(sent.id, Cancelling(message="The run was stopped"))
                raise StageFailed(f"stage '{spec.name}': the run was stopped", crashed=False)
            time.sleep(POLL_SECONDS)
            sent = client.read_flow_run(sent.id)
            if time.monotonic() - noted > QUIET_SECONDS:
                noted = time.monotonic()
                say(f"{spec.name}: {sent.state_name} on pool {pool}")
        return sent


def _do(errand: Errand, address: str, run: Run) -> bool:
    request = json.dumps({"errand": errand, "address": address})
    return json.loads(
        query("stillhouse_flows.data.share", request, env=run.env, cwd=run.space.root)
    )


@flow(name="stage", persist_result=False)
def stage(
    request: dict[str, Any],  # Any: JSON values
    branch: RunBranch,
    commit: Commit,
    name: StageName,
    lock: str,
    device: Device = "auto",
) -> None:
    """Run one stage of another machine's run on this clone; results go to the DVC remote."""
    logger, project = get_run_logger(), project_root()
    git(project, "fetch", "--quiet", GIT_REMOTE, branch)
    requested = Request(**request)
    with workspace(project, f"stage-{requested.label()}", ref=commit, keep=False) as space:
        run = opened(space, requested, device)
        _check_code(space)
        if lock:
            (space.root / run.prepared.pipeline).with_suffix(".lock").write_text(lock)
        spec = next(each for each in plan(space.root, run.prepared.pipeline) if each.name == name)
        _do("fetch", spec.address, run)
        words = json.dumps({"ref": run.prepared.ref, "stage": name})
        query("stillhouse_flows.stages.outside", words, env=run.env, cwd=space.root)
        children = Children()
        try:
            names = slots.devices(device) if spec.resource == "gpu" else ()
            with slots.hold(names, min(1, len(names)), f"{branch}/{name}", logger.info) as held:
                result = run_stage(
                    children,
                    spec,
                    root=space.root,
                    env={**run.env, **held.environment()},
                    folders=run.folders,
                    log=run.folder / f"{name}.log",
                    say=logger.info,
                    files=held.files,
                )
        except BaseException:
            children.kill()
            raise
        _do("give", spec.address, run)
        logger.info("%s: %s", name, result.status)


def _check_code(space: RunWorkspace) -> None:
    """Settling a run with the same code as its sender's writes the pipeline that is there."""
    if differ := git(space.root, "status", "--porcelain"):
        raise StillhouseError(
            f"this machine's stillhouse or plugin differs from the sender's ({differ.split()[-1]} "
            "would change); install the same versions on both"
        )
