"""Where a report's numbers come from, and whether the stages belong together."""

import hashlib
import importlib.metadata
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from stillhouse.code import recipe_code, stage_code
from stillhouse.digest import file_digest
from stillhouse.errors import BadData
from stillhouse.recipe import OUTSIDE, Recipe, Stage
from stillhouse.report.collect import Finished
from stillhouse.report.document import Lineage
from stillhouse.runs import stage_key

MOST_NAMES = 12  # of stages in a sentence


def lineage(recipe: Recipe, root: Path, finished: Mapping[str, Finished]) -> Lineage:
    """The versions of the checkout at `root`, and what of the finished stages is stale in it."""
    lock = root / "uv.lock"
    return Lineage(
        data=data_version(root / "data.dvc"),
        commit=_git(root, "rev-parse", "HEAD"),
        changed=bool(_git(root, "status", "--porcelain", "--untracked-files=no")),
        lock=file_digest(lock) if lock.is_file() else None,
        code=recipe_code(recipe),
        stillhouse=importlib.metadata.version("stillhouse"),
        stale=_stale(recipe, finished),
    )


def data_version(file: Path) -> str | None:
    """The md5 a .dvc file pins (of several outputs: the sha256 of all); None without the file."""
    if not file.is_file():
        return None
    try:
        pinned = [str(out["md5"]) for out in yaml.safe_load(file.read_text())["outs"]]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise BadData(f"{file}: not a DVC file with outs and their md5 ({error})") from error
    if len(pinned) == 1:
        return pinned[0]
    return hashlib.sha256("\n".join(pinned).encode()).hexdigest()


def _git(root: Path, *words: str) -> str | None:
    """What git prints about the checkout; None outside one, or without git."""
    try:
        # no optional locks: a report must not disturb a commit that is being made
        command = ["git", "--no-optional-locks", "-C", str(root), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _stale(recipe: Recipe, finished: Mapping[str, Finished]) -> tuple[str, ...]:
    stages = [stage for stage in recipe.stages if stage.name in finished]
    other = [
        s.name for s in stages if _key(recipe, s, finished[s.name]) != finished[s.name].file.key
    ]
    notes = [note for stage in stages for note in _older_inputs(stage, finished)]
    if other:
        names = "all stages" if len(other) == len(finished) else some_of(other)
        notes.insert(0, f"Run with other code or settings than this checkout has: {names}.")
    return tuple(notes)


def some_of(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _key(recipe: Recipe, stage: Stage, done: Finished) -> str:
    """The key run_stage would give the stage now, its outside inputs unchanged."""
    inputs = {port: source.digest for port, source in done.file.inputs.items()}
    return stage_key(stage, inputs, stage_code(recipe, stage, done.file.builds))


def _older_inputs(stage: Stage, finished: Mapping[str, Finished]) -> list[str]:
    notes: list[str] = []
    for source in finished[stage.name].file.inputs.values():
        upstream, _, port = source.ref.partition(".")
        if source.ref.startswith(OUTSIDE) or upstream not in finished:
            continue
        made = finished[upstream].file.outputs.get(port)
        if made is None or made.digest != source.digest:
            notes.append(f"{stage.name} was made from another {source.ref} than the one here.")
    return notes
