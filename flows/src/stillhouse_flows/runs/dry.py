"""What a run would do, found by trying: in a throw-away workspace DVC brings back every stage that
it can; the rest would run.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillhouse_flows.runs.request import Request
from stillhouse_flows.runs.run import Run, opened, start
from stillhouse_flows.stages.kept import bring_back
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
    with workspace(project, f"plan-{request.label()}", ref=ref, keep=False) as space:
        run = opened(space, request, "auto")
        start(run)
        stages = plan(space.root, run.prepared.pipeline)
        _note_inputs(run, stages)
        kept = {INPUTS, *(result.name for result in bring_back(space.root, stages))}
        return [_planned(spec, kept) for spec in stages]


def _planned(spec: StageSpec, kept: Container[str]) -> Planned:
    ahead = [name for name in spec.upstream if name not in kept]
    return Planned(stage=spec, cached=spec.name in kept, because=", ".join(ahead))


def _note_inputs(run: Run, stages: Sequence[StageSpec]) -> None:
    """Run the stage `inputs`: by what it leaves the others are found."""
    (spec,) = (each for each in stages if each.name == INPUTS)
    run_stage(
        Children(),
        spec,
        root=run.space.root,
        env=run.env,
        folders=run.folders,
        log=run.folder / f"{spec.name}.log",
        say=list[str]().append,
    )
