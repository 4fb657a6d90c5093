"""`clean`: frees what Stillhouse keeps under its home folder and can make again."""

import math
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.tables import size
from stillhouse.errors import BadSetting

UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
GIB = 1024**3
# kind of thing -> where under home() each one is a folder of its own
KINDS = {
    "workspace": "workspaces/*/*",
    "checkpoint": "checkpoints/*",
    "teacher cache": "teacher-cache/*/*",
}
# what changed this recently may belong to a run that is still going
IN_USE_SECONDS = 3600


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
    """Free old workspaces, checkpoints and teacher caches.

    Finished runs and models are never touched.
    """
    from stillhouse.places import home

    root, now = home(), time.time()
    kept = survey(root)
    keep = None if keep_gib is None else _bytes(keep_gib)
    chosen = choose(kept, now=now, older_than=seconds(older_than), keep=keep)
    for item in chosen:
        age = (now - item.changed) / UNITS["d"]
        verb = "would free" if dry_run else "freed"
        if not dry_run:
            shutil.rmtree(item.path)
        print(f"{verb} {size(item.size):>10}  {item.kind}, {age:.1f} days old: {item.path}")
    freed, total = sum(i.size for i in chosen), sum(i.size for i in kept)
    left = total if dry_run else total - freed
    print(
        f"{'Would free' if dry_run else 'Freed'} {size(freed)}; {size(left)} in use under {root}."
    )


def _bytes(gib: float) -> int:
    if not math.isfinite(gib * GIB):
        raise BadSetting(f"--keep-gib {gib}: expected a finite number, as in --keep-gib 20")
    return round(gib * GIB)


def seconds(text: str) -> float:
    """ "30d" as seconds; raises BadSetting."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text)
    if match is None:
        raise BadSetting(f"--older-than {text}: expected a number and m, h, d or w, as in 30d")
    return float(match[1]) * UNITS[match[2]]


def survey(root: Path) -> list[Kept]:
    """Everything under `root` that can be freed, oldest first."""
    kept = [
        _measure(kind, path)
        for kind, pattern in KINDS.items()
        for path in root.glob(pattern)
        if path.is_dir() and not path.is_symlink()
    ]
    return sorted(kept, key=lambda item: (item.changed, item.path))


def choose(kept: Sequence[Kept], *, now: float, older_than: float, keep: int | None) -> list[Kept]:
    """What to free: all of that age, then the oldest until at most `keep` bytes are left."""
    left = sum(item.size for item in kept)
    chosen: list[Kept] = []
    for item in kept:
        age = now - item.changed
        too_much = keep is not None and left > keep
        if age > IN_USE_SECONDS and (age > older_than or too_much):
            chosen.append(item)
            left -= item.size
    return chosen


def _measure(kind: str, path: Path) -> Kept:
    stats = [p.lstat() for p in (path, *path.rglob("*"))]
    # a file linked from elsewhere (DVC's cache) frees nothing
    total = sum(s.st_size for s in stats if s.st_nlink == 1)
    return Kept(kind=kind, path=path, size=total, changed=max(s.st_mtime for s in stats))
