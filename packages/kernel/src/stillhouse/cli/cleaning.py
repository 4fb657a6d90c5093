"""`clean`: frees what Stillhouse keeps under its home folder and can make again."""

import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.tables import size
from stillhouse.errors import BadSetting
from stillhouse.leftovers import asides, dead_temporaries, unheld

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
GIB = 1024**3
# how often a folder is removed again of which others removed a part meanwhile
TRIES = 10
# beside a folder: never free it
KEEP = ".keep"
# kind of thing -> where under home() each one is a folder of its own
KINDS = {
    "workspace": "workspaces/*/*",
    "checkpoint": "checkpoints/*",
    "teacher cache": "teacher-cache/*/*",
    "package file": "packages/*",
}


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One folder that could be freed."""

    kind: str
    path: Path
    size: int
    changed: float  # time of the last change inside, seconds since the epoch


def clean(
    older_than: Annotated[
        str, typer.Option(help="Free what has not changed for so long: 12h, 30d, 8w.")
    ] = "30d",
    keep_gib: Annotated[
        float | None,
        typer.Option(min=0, help="Then free the oldest until at most so many GiB are left."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be freed.")
    ] = False,
) -> None:
    """Free old workspaces, checkpoints, teacher caches and files of packages, and what killed runs
    left behind.

    Finished runs and models are never touched, nor what a run that still goes has locked.
    """
    from stillhouse.places import home, project_root

    root, now = home(), time.time()
    kept = survey(root)
    keep = None if keep_gib is None else _bytes(keep_gib)
    chosen = choose(kept, now=now, older_than=seconds(older_than), keep=keep)
    remove = _leave if dry_run else _remove
    verb = "would free" if dry_run else "freed"
    freed = 0
    for item in chosen:
        age = (now - item.changed) / UNITS["d"]
        if reason := _free(item, remove):
            print(f"kept  {size(item.size):>10}  {item.kind}, {reason}: {item.path}")
            continue
        freed += item.size
        print(f"{verb} {size(item.size):>10}  {item.kind}, {age:.1f} days old: {item.path}")
    for item in left_behind(project_root()):
        remove(item.path)
        freed += item.size
        print(f"{verb} {size(item.size):>10}  {item.kind} of a killed run: {item.path}")
    total = sum(item.size for item in (kept if dry_run else survey(root)))
    print(
        f"{'Would free' if dry_run else 'Freed'} {size(freed)}; {size(total)} in use under {root}."
    )


def _bytes(gib: float) -> int:
    if not math.isfinite(gib * GIB):
        raise BadSetting(f"--keep-gib {gib}: expected a finite number, as in --keep-gib 20")
    return round(gib * GIB)


def _free(item: Kept, remove: Callable[[Path], None]) -> str:
    """Why it is kept: another process has its lock, or the file system refuses; empty when gone."""
    if item.path.with_name(f"{item.path.name}{KEEP}").exists():
        return "marked to be kept"
    with unheld(item.path.with_name(f"{item.path.name}.lock")) as free:
        if not free:
            return "in use by a run"
        try:
            remove(item.path)
        except OSError as error:
            return f"{error.strerror}".lower()
    return ""


def _leave(path: Path) -> None:
    """What a dry run does to a folder."""


def _remove(path: Path) -> None:
    """Remove a file or folder, whoever else removes parts of it meanwhile."""
    for _ in range(TRIES):
        if not path.is_dir():
            return path.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(path)
    return None


def left_behind(project: Path) -> Iterator[Kept]:
    """What killed runs left in the project's runs and in the folder for temporary files; each is
    locked while it is yielded.
    """
    for folder in dead_temporaries():
        if found := _measure("temporary folder", folder):
            yield found
    for lock in sorted((project / "runs").glob("*/*/*/.locks/*.lock")):
        stage, run = lock.stem, lock.parent.parent
        if asides(run, stage):
            with unheld(lock) as free:
                measured = (_measure("half of a stage", p) for p in asides(run, stage) if free)
                yield from (found for found in measured if found)


def seconds(text: str) -> float:
    """ "30d" as seconds; raises BadSetting."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if match is None:
        raise BadSetting(f"--older-than {text}: expected a number and m, h, d or w, as in 30d")
    return float(match[1]) * UNITS[match[2]]


def survey(root: Path) -> list[Kept]:
    """Everything under `root` that can be freed, oldest first."""
    folders = [
        (kind, path)
        for kind, pattern in KINDS.items()
        for path in root.glob(pattern)
        if path.is_dir() and not path.is_symlink()
    ]
    kept = [found for kind, path in folders if (found := _measure(kind, path))]
    return sorted(kept, key=lambda item: (item.changed, item.path))


def choose(kept: Sequence[Kept], *, now: float, older_than: float, keep: int | None) -> list[Kept]:
    """What to free: all of that age, then the oldest until at most `keep` bytes are left."""
    left = sum(item.size for item in kept)
    chosen: list[Kept] = []
    for item in kept:
        age = now - item.changed
        too_much = keep is not None and left > keep
        if age > older_than or too_much:
            chosen.append(item)
            left -= item.size
    return chosen


def _measure(kind: str, path: Path) -> Kept | None:
    """Size and age of a folder; None where it is gone by now, as parts of it may be."""
    stats: list[os.stat_result] = []
    below = (Path(at) / name for at, folders, files in os.walk(path) for name in folders + files)
    for found in chain([path], below):
        with suppress(FileNotFoundError):
            stats.append(found.lstat())
    if not stats:
        return None
    # a file linked from elsewhere (DVC's cache) frees nothing
    total = sum(s.st_size for s in stats if s.st_nlink == 1)
    return Kept(kind=kind, path=path, size=total, changed=max(s.st_mtime for s in stats))
