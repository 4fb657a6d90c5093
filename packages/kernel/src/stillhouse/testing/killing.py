"""Deaths of a stage inside one process: an exception that nothing on the way may swallow."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from stillhouse.artifact import Artifact
from stillhouse.federated.stage import Federate
from stillhouse.recipe import Context, Event, Recipe, Resource, Result, Stage
from stillhouse.runs import Runs, finished, run_stage
from stillhouse.stages.search import Search
from stillhouse.stages.train import Train


class KilledError(BaseException):
    """The death of a stage; like a KeyboardInterrupt, no `except Exception` catches it."""


@dataclass(frozen=True, kw_only=True)
class DiesLast:
    """A stage that dies when all its outputs are written and none is in place yet. They are those
    of `done`, the stage's folder in a finished run, so that nothing is computed twice.
    """

    stage: Stage
    done: Path

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def seed(self) -> int:
        return self.stage.seed

    @property
    def inputs(self) -> Mapping[str, str]:
        return self.stage.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        return self.stage.outputs

    @property
    def distributed(self) -> bool:
        return self.stage.distributed

    @property
    def resource(self) -> Resource:
        return self.stage.resource

    def run(self, inputs: Mapping[str, Artifact], ctx: Context) -> Result:
        shutil.copytree(self.done, ctx.out, dirs_exist_ok=True)
        raise KilledError


def die_at_checkpoint(event: Event) -> None:
    """An observer that kills the stage when its first checkpoint has been written."""
    if event.text == "checkpoint":
        raise KilledError


def kill_and_resume(recipe: Recipe, stage: Stage, runs: Runs, whole: Runs) -> None:
    """Run a stage that dies once, then again to its end; asserts that nothing half-done is left.

    A training, a search or a federation dies at a checkpoint in the middle and must go on from
    there; any other stage dies just before its outputs, those of the finished run `whole`, are
    moved into place.
    """
    middle, resumed = _middle(stage)
    dying = replace(runs, observe=die_at_checkpoint, checkpoint_steps=middle or None)
    dies_last = DiesLast(stage=stage, done=whole.folder / stage.name)
    with pytest.raises(KilledError):
        run_stage(recipe, stage if middle else dies_last, dying)
    assert finished(stage, runs) is None
    events: list[Event] = []
    run_stage(recipe, stage, replace(runs, observe=events.append))
    assert not middle or resumed in [event.text for event in events]


def take_over(recipe: Recipe, stage: Stage, runs: Runs, whole: Runs) -> None:
    """Give `runs` the stage as the finished run `whole` has it; asserts that it is up to date
    there.
    """
    for path in (stage.name, *(f.name for f in whole.folder.glob(f"{stage.name}.*"))):
        source, target = whole.folder / path, runs.folder / path
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    events: list[Event] = []
    run_stage(recipe, stage, replace(runs, observe=events.append))
    assert [event.text for event in events] == ["up to date"]


def _middle(stage: Stage) -> tuple[int, str]:
    """After how many steps, candidates or rounds a stage can die, and what it says on going on."""
    match stage:
        case Train():
            middle, unit = stage.steps // 2, "step"
        case Search():
            middle, unit = stage.trials // 2, "candidate"
        case Federate():
            middle, unit = (1 if stage.rounds > 1 else 0), "round"
        case _:
            return 0, ""
    return middle, f"resumed at {unit} {middle}"
