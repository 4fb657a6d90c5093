"""What a run would do, found by trying: in a throw-away workspace DVC brings back every stage that
it can; the rest would run.
"""

from dataclasses import dataclass
from pathlib import Path

from stillhouse_flows.processes.hush import hush_dvc
from stillhouse_flows.runs.request import Request
from stillhouse_flows.runs.run import Run, opened, start
from stillhouse_flows.stages.child import restore
from stillhouse_flows.stages.process import Children, run_stage
from stillhouse_flows.stages.project import INPUTS, StageSpec, plan
from stillhouse_flows.workspace.worktree import workspace


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One stage of a run that has not started."""

    stage: StageSpec
    cached: bool
    because: str = ""  # stages before it that would run


def dry_run(project: Path, request: Request, *, ref: str = "") -> list[Planned]:
    """The stages of a run in order, with which of them would run."""
    hush_dvc()
    with workspace(project, f"plan-{request.label()}", ref=ref, keep=False) as space:
        run = opened(space, request, "auto")
        start(run)
        planned: dict[str, Planned] = {}
        for spec in plan(space.root, run.prepared.pipeline):
            ahead = [name for name in spec.upstream if not planned[name].cached]
            cached = not ahead and _restored(run, spec)
            planned[spec.name] = Planned(stage=spec, cached=cached, because=", ".join(ahead))
        return list(planned.values())


def _restored(run: Run, spec: StageSpec) -> bool:
    if spec.name != INPUTS:
        return restore(run.space.root, spec.address)
    # what the others are found by
    run_stage(
        Children(),
        spec,
        root=run.space.root,
        env=run.env,
        folders=run.folders,
        log=run.folder / f"{spec.name}.log",
        say=list[str]().append,
    )
    return True
