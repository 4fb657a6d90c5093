"""The flow `watch`: has anything changed that a recipe reads? If so distill, hold the student
against the recipe's gate, and promote or refuse it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from stillhouse.errors import StillhouseError
from stillhouse.places import project_root
from stillhouse_flows.data.pinned import RemoteLost, pin
from stillhouse_flows.flow import distill, log_lines, remote_task, run_name
from stillhouse_flows.processes.hush import hush_dvc
from stillhouse_flows.processes.local import settle
from stillhouse_flows.processes.querying import query
from stillhouse_flows.promotion.gate import Gate, check_scores, choose_row, missing_gate, read_gate
from stillhouse_flows.promotion.history import decisions
from stillhouse_flows.promotion.inputs import Inputs, changes, inputs_from, reading_from, with_data
from stillhouse_flows.promotion.promoted import Judgement, judge, promotion
from stillhouse_flows.runs.artifacts import key
from stillhouse_flows.runs.parameters import (
    Device,
    Pools,
    RecipeName,
    Ref,
    ScaleName,
    SettingValues,
)
from stillhouse_flows.runs.request import Request
from stillhouse_flows.runs.run import opened
from stillhouse_flows.server.serving import ENDS_OF_WATCH
from stillhouse_flows.upkeep.failures import clear_fault, fault_of, note_fault
from stillhouse_flows.upkeep.overdue import drop_overdue
from stillhouse_flows.workspace.branches import Repository, repository
from stillhouse_flows.workspace.worktree import workspace

UNCHANGED, PROMOTED, REFUSED = ENDS_OF_WATCH


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a run would be made from now, and the gate it would be held against."""

    recipe: str  # "domain/recipe"
    ref: str  # RECIPE@VARIANT
    inputs: Inputs
    gate: Gate


@flow(name="watch", flow_run_name=run_name, persist_result=False, on_running=[drop_overdue])
def watch(
    recipe: RecipeName = "vision/distill",
    scale: ScaleName = "",
    settings: SettingValues | None = None,
    device: Device = "auto",
    ref: Ref = "",
    push: bool = False,
    pools: Pools | None = None,
    gpu_limit: str = "",
    code: bool = False,
    force: bool = False,
) -> State[None]:
    """Distill when the data, another input or a setting is not that of the last promoted or judged
    run, and promote what passes the gate. Ends Completed as "Unchanged", "Promoted" or "Refused".

    Args:
        recipe: domain/recipe, or domain/recipe@variant with the settings of params.yaml.
        scale: tiny, small or paper; empty is tiny, or the variant's own.
        settings: What differs from the scale's preset, as in {"seeds": 3}.
        device: auto, cpu, cuda or cuda:1, on the machine that runs it.
        ref: A commit, branch or tag; empty takes the project's files as they are.
        push: Send what the stages leave to the DVC remote, and a promoted student first.
        pools: Where stages that want a resource go, as in {"gpu": "big-box"}: to a work pool.
        gpu_limit: A global concurrency limit of Prefect's, as in `distill`.
        code: Other code counts as a change too.
        force: Run in any case.
    """
    settle()
    hush_dvc()
    project = project_root()
    request = Request(recipe=recipe, scale=scale, settings=settings or {})
    repo = repository(project)
    seen = look(project, request, ref)
    reason = _reason(repo, seen, code=code)
    if reason.unchanged and not force:
        return _end(UNCHANGED, reason.words)
    log_lines(f"{reason.words}; forced" if reason.unchanged else reason.words)
    if not force:
        wait_out(project, seen)
    words: dict[str, Any] = {
        "device": device,
        "ref": ref,
        "push": push,
        "pools": pools,
        "gpu_limit": gpu_limit,
    }
    try:
        # Any: with keywords of a mapping no checker knows which overload this is
        finished: Any = distill(recipe=recipe, scale=scale, settings=settings, **words)
    except RemoteLost:  # no fault of what was read
        raise
    except StillhouseError as error:
        note_fault(project, seen.ref, asdict(seen.inputs), str(error))
        raise
    clear_fault(project, seen.ref)
    judgement: Judgement = hold(project, finished.run, seen.gate, push)
    show(judgement, seen.gate)
    return _end(PROMOTED if judgement.promoted else REFUSED, judgement.sentence())


def wait_out(project: Path, seen: Seen) -> None:
    """Raises StillhouseError while the same inputs are known to fail."""
    fault = fault_of(project, seen.ref)
    if fault is None or not fault.waits():
        return
    if not changes(inputs_from(fault.inputs), seen.inputs, code=True):
        raise StillhouseError(
            f"{seen.ref} has failed {fault.times} times since {fault.since}: {fault.reason}; not "
            f"tried again before {fault.again}, unless what it reads changes, or with --force"
        )


@remote_task(name="gate", task_run_name="gate")
def hold(project: Path, run: str, gate: Gate, push: bool) -> Judgement:
    """Promote the run or refuse it."""
    return judge(project, run, gate, push=push)


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why to run, or why not."""

    unchanged: bool
    words: str


def look(project: Path, request: Request, ref: str) -> Seen:
    """Read the project as a run would, in a workspace that goes at once.

    Raises StillhouseError where there is no gate, or the gate names a row or score that the report
    will not have.
    """
    with workspace(project, f"watch-{request.label()}", ref=ref, keep=False) as space:
        run = opened(space, request, "auto")
        chosen = run.prepared
        words = json.dumps({"ref": chosen.ref, "project": str(project)})
        text = query("stillhouse_flows.promotion.inputs", words, env=run.env, cwd=space.root)
        reading = reading_from(text)
        gate = read_gate((space.root / "params.yaml").read_text(), chosen.recipe)
        inputs = with_data(reading.inputs, pin(space.root), space.cache)
    if gate is None:
        raise missing_gate(chosen.recipe)
    where = f"params.yaml: gate {chosen.recipe}"
    row = choose_row(gate, reading.rows, reading.exported, method=reading.method, where=where)
    check_scores(gate, reading.scores[row], where=f"{where}: row '{row}'")
    return Seen(recipe=chosen.recipe, ref=chosen.ref, inputs=inputs, gate=gate)


def _reason(repo: Repository, seen: Seen, *, code: bool) -> Reason:
    """Whether the inputs are those of the promoted run, or of the last judged one."""
    promoted, judged = promotion(repo, seen.recipe), next(decisions(repo, seen.ref), None)
    for record in filter(None, (judged, promoted)):
        if not changes(inputs_from(record["inputs"]), seen.inputs, code=code):
            outcome = "promoted" if record["promoted"] else "refused"
            hint = f"; to judge it again: stillhouse flow promote {record['run']}"
            return Reason(
                unchanged=True,
                words=f"{seen.ref} unchanged since {record['run']}, {outcome} {record['time']}"
                f"{'' if record['promoted'] else hint}",
            )
    last = promoted or judged
    if last is None:
        return Reason(unchanged=False, words=f"{seen.ref} was never judged")
    differ = changes(inputs_from(last["inputs"]), seen.inputs, code=code)
    return Reason(
        unchanged=False, words=f"{seen.ref} changed since {last['run']}: {'; '.join(differ)}"
    )


def show(judgement: Judgement, gate: Gate) -> None:
    """The outcome as a markdown artifact of the flow run."""
    word = "Promoted" if judgement.promoted else "Refused"
    reasons = "\n".join(f"- {reason}" for reason in judgement.decision.reasons)
    rules = json.dumps(gate.model_dump(mode="json", exclude_defaults=True))
    create_markdown_artifact(
        key=key(judgement.recipe, "gate"),
        markdown=f"# {word}: {judgement.recipe}\n\nRun `{judgement.run}`, "
        f'row "{judgement.decision.row}"\n\n{reasons}\n\nGate: `{rules}`\n',
        description=judgement.sentence(),
    )


def _end(name: str, message: str) -> State[None]:
    log_lines(f"{name}: {message}")
    return Completed(name=name, message=message)
