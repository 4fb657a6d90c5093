"""Where the newest results of a project are: a run may go in a folder of its own, and `report` is
called for it in the project.

$STILLHOUSE_HOME/newest/<project>-<hash>.json    of each variant the folders it ran in, newest first
"""

import json
import time
from pathlib import Path
from typing import Any

from filelock import FileLock

from stillhouse.digest import text_digest
from stillhouse.files import write_text
from stillhouse.places import home
from stillhouse.runs import Runs
from stillhouse.settings import Settings

KEPT = 20


def register_run(project: Path, runs: Runs, settings: Settings | None = None) -> None:
    """Note that `runs` holds the newest results of its recipe and variant in `project`; writes
    their settings.json from `settings` where it is missing.
    """
    if settings is not None and not runs.settings.is_file():
        runs.note_settings(settings)
    file = _index(project)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):
        index = _read(file)
        name = f"{runs.recipe}@{runs.variant}"
        entry = {"root": str(runs.root.resolve()), "finished": time.time()}
        older = [e for e in index.get(name, []) if e["root"] != entry["root"] and _there(e, runs)]
        index[name] = [entry, *older][:KEPT]
        record = {"project": str(project.resolve()), "runs": index}
        write_text(file, json.dumps(record, indent=1, sort_keys=True) + "\n")


def newest_run(project: Path, recipe: str, variant: str) -> tuple[Path, float] | None:
    """The root that holds the newest registered results, and when they were finished (seconds since
    the epoch); None where none is left.
    """
    for entry in _read(_index(project)).get(f"{recipe}@{variant}", []):
        root = Path(entry["root"])
        if Runs(root=root, recipe=recipe, variant=variant).settings.is_file():
            return root, float(entry["finished"])
    return None


def _there(entry: dict[str, Any], runs: Runs) -> bool:
    return Runs(
        root=Path(entry["root"]), recipe=runs.recipe, variant=runs.variant
    ).settings.is_file()


def _index(project: Path) -> Path:
    where = project.resolve()
    return home() / "newest" / f"{where.name}-{text_digest(str(where))[:6]}.json"


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:  # Any: JSON values
    """By "domain/recipe@variant"; what cannot be read counts as nothing: it can be written anew."""
    try:
        runs = json.loads(file.read_text())["runs"]
        return {
            name: [{"root": str(e["root"]), "finished": float(e["finished"])} for e in entries]
            for name, entries in runs.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
