"""What RECIPE[@VARIANT], --scale and --set mean: a recipe, its settings and its folder."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import BadSetting, MissingData
from stillhouse.json_files import read_json
from stillhouse.newest import newest_run
from stillhouse.reach import checked_settings
from stillhouse.recipe import (
    CHECKPOINT_SECONDS,
    MICRO_BATCHES,
    OLDER_MICRO_BATCHES,
    SHARD,
    Observer,
    Recipe,
    silent,
)
from stillhouse.runs import Runs, project_root
from stillhouse.settings import (
    Settings,
    Stored,
    find_settings,
    make_recipe,
    make_settings,
    parse_assignments,
)

SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What is read here of <stage>.run.json."""

    seconds: float


def recorded_seconds(record: Path) -> float:
    """How long the run of a stage took that left this <stage>.run.json."""
    return read_json(record, _Measured, redo="run the stage again").seconds


@dataclass(frozen=True, kw_only=True)
class Target:
    """A recipe, the settings it was made from, and the project it runs in."""

    name: str  # "domain/recipe"
    settings: Settings
    recipe: Recipe
    root: Path

    @property
    def variant(self) -> str:
        return self.settings.variant()

    @property
    def ref(self) -> str:
        """RECIPE@VARIANT, which names the same target again."""
        return f"{self.name}@{self.variant}"

    def runs(
        self, *, device: str = "cpu", engine: str = "local", observe: Observer = silent
    ) -> Runs:
        return Runs(
            root=self.root,
            recipe=self.name,
            variant=self.variant,
            device=device,
            engine=engine,
            micro_batches=_from_environment(
                MICRO_BATCHES, _from_environment(OLDER_MICRO_BATCHES, 1)
            ),
            shard=tuple(filter(None, os.environ.get(SHARD, "").split(","))),
            checkpoint_seconds=_from_environment(CHECKPOINT_SECONDS, 60),
            observe=observe,
        )

    def seconds(self, stage: str) -> float | None:
        """How long the last run of a stage took; None where it has not run."""
        record = self.runs().folder / f"{stage}.run.json"
        return recorded_seconds(record) if record.is_file() else None

    def finished_after(self, moment: float) -> bool:
        """Whether a run of all stages began after this moment, seconds since the epoch."""
        runs = self.runs()
        done = all((runs.folder / s.name / "stage.json").is_file() for s in self.recipe.stages)
        return done and runs.settings.stat().st_mtime > moment

    def need_run(self) -> None:
        """Raises MissingData when nothing of this target has run here."""
        runs = self.runs()
        if not any(runs.folder.glob("*/stage.json")):
            raise MissingData(
                f"{self.ref} has not run in {self.root}. Run: stillhouse run {self.ref}"
            )
        if not runs.settings.is_file():  # `dvc pull` brought the stages
            runs.note_settings(self.settings)


def _from_environment(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise BadSetting(f"{name}={text}: expected a whole number >= 1")
    return int(text)


def make_target(ref: str, scale: str = "", assignments: Sequence[str] = ()) -> Target:
    """The target of RECIPE[@VARIANT], or of RECIPE at `scale` (empty: tiny) with assignments.

    Raises UnknownName, BadSetting, MissingExtra, PluginError or BadRecipe with one line.
    """
    root = project_root()
    if "@" not in ref:
        given = parse_assignments(assignments)
        return _target(ref, checked_settings(ref, scale or "tiny", given, given), root)
    if scale or assignments:
        raise BadSetting(f"{ref} has settings of its own; leave out @VARIANT, or --scale and --set")
    return staged_target(ref)


def target_of(name: str, settings: str) -> Target:
    """The target of "domain/recipe" with all its settings, as JSON text."""
    try:
        values = dict(json.loads(settings))
        scale = values.pop("scale")
    except (ValueError, TypeError, KeyError) as error:
        raise BadSetting(
            f"--settings: expected JSON with every setting of {name} ({error})"
        ) from error
    return _target(name, make_settings(name, scale, values), project_root())


def staged_target(ref: str) -> Target:
    """The target of RECIPE[@VARIANT] as params.yaml has it, else as it was last run here."""
    root = project_root()
    return _target(*find_settings(ref, root, root / "runs"), root)


def own_target(ref: str) -> Target:
    """The target of RECIPE[@VARIANT] as it was last run here, whatever params.yaml says by now."""
    return _recorded(ref, project_root()) or staged_target(ref)


def last_target(ref: str) -> Target:
    """The target of RECIPE[@VARIANT] as it was last run for this project: here, or in a folder that
    is registered as the newest (see stillhouse.newest), unless a finished run here is newer.
    """
    root = project_root()
    own = _recorded(ref, root)
    name, _, variant = ref.partition("@")
    found = newest_run(root, name, variant or "tiny")
    if found is None or (own is not None and own.finished_after(found[1])):
        return own or staged_target(ref)
    return _recorded(ref, found[0]) or staged_target(ref)


def _recorded(ref: str, root: Path) -> Target | None:
    """The target as the settings.json below a root has it; None where there is none."""
    name, _, variant = ref.partition("@")
    record = root / "runs" / name / (variant or "tiny") / SETTINGS
    if not record.is_file():
        return None
    stored = read_json(record, Stored, redo="run the recipe again")
    return _target(name, make_settings(name, stored.scale, stored.settings), root)


def _target(name: str, settings: Settings, root: Path) -> Target:
    return Target(name=name, settings=settings, recipe=make_recipe(name, settings), root=root)
