"""Digests of large files that have not changed since they were hashed, kept beside the caches.

A file is known by device, inode, size and times of change. A digest counts where both times lie
`RACY_SECONDS` before it was taken: within the clock's grain a later write could leave the same
times (git's rule for its index). `STILLHOUSE_VERIFY=1` reads every byte again.
"""

import contextlib
import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stillhouse.places import home

VERIFY = "STILLHOUSE_VERIFY"
LARGE = 64 << 20  # bytes of a file or folder from which on looking up is less work than hashing
RACY_SECONDS = 2.0
FILE = "digests.sqlite"
MOST = 900  # names in one query
TABLE = """CREATE TABLE IF NOT EXISTS digests (
    device INTEGER, inode INTEGER, size INTEGER, modified INTEGER, changed INTEGER, sha256 TEXT,
    PRIMARY KEY (device, inode)) WITHOUT ROWID"""


@dataclass(frozen=True, kw_only=True)
class _Stat:
    """What a file is known by."""

    device: int
    inode: int
    size: int
    modified: int  # nanoseconds
    changed: int

    @classmethod
    def of(cls, path: Path) -> "_Stat":
        found = path.stat()
        return cls(
            device=found.st_dev,
            inode=found.st_ino,
            size=found.st_size,
            modified=found.st_mtime_ns,
            changed=found.st_ctime_ns,
        )

    def settled(self, now_ns: int) -> bool:
        return max(self.modified, self.changed) < now_ns - RACY_SECONDS * 1e9


class Memo:
    """The known digests of some files; new ones are kept when it is closed."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.stats = {path: _Stat.of(path) for path in files}
        self.large = sum(stat.size for stat in self.stats.values()) >= LARGE
        self.known: Mapping[tuple[int, int], tuple[_Stat, str]] = {}
        self.new: list[tuple[_Stat, str]] = []
        if self.large and not os.environ.get(VERIFY):
            self.known = _read(self.stats.values())

    def recall(self, path: Path) -> str | None:
        """The digest of a file that is as it was."""
        stat = self.stats[path]
        found = self.known.get((stat.device, stat.inode))
        return found[1] if found is not None and found[0] == stat else None

    def remember(self, path: Path, sha256: str, *, begun_ns: int) -> None:
        """Keep a digest that hashing from `begun_ns` on gave."""
        stat = self.stats[path]
        if self.large and stat.settled(begun_ns) and _Stat.of(path) == stat:
            self.new.append((stat, sha256))

    def close(self) -> None:
        if self.new:
            _write(self.new)


def remember_written(files: Mapping[Path, str]) -> None:
    """Keep the digests of files that this process has just written and nobody else knows; those
    written in the last moment are hashed once more by whoever reads them.
    """
    stats = {path: _Stat.of(path) for path in files}
    if sum(stat.size for stat in stats.values()) >= LARGE:
        now = time.time_ns()
        _write([(stat, files[path]) for path, stat in stats.items() if stat.settled(now)])


def _file() -> Path:
    return home() / FILE


def _read(stats: Iterable[_Stat]) -> dict[tuple[int, int], tuple[_Stat, str]]:
    found: dict[tuple[int, int], tuple[_Stat, str]] = {}
    if not _file().is_file():
        return found
    nodes = defaultdict[int, list[int]](list)
    for stat in stats:
        nodes[stat.device].append(stat.inode)
    # a memo that cannot be read knows nothing
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_opened()) as base:
        for device, each in nodes.items():
            for first in range(0, len(each), MOST):
                some = each[first : first + MOST]
                marks = ",".join("?" * len(some))  # pairs in place of these would read every row
                rows = base.execute(
                    "SELECT inode, size, modified, changed, sha256 FROM digests "
                    f"WHERE device = ? AND inode IN ({marks})",
                    [device, *some],
                )
                for inode, size, modified, changed, sha256 in rows:
                    stat = _Stat(
                        device=device, inode=inode, size=size, modified=modified, changed=changed
                    )
                    found[device, inode] = stat, sha256
    return found


def _write(digests: Iterable[tuple[_Stat, str]]) -> None:
    rows = [(s.device, s.inode, s.size, s.modified, s.changed, text) for s, text in digests]
    # what is not kept is computed again
    with contextlib.suppress(sqlite3.Error, OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_opened()) as base, base:
            base.execute(TABLE)
            base.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)", rows)


def _opened() -> sqlite3.Connection:
    return sqlite3.connect(_file(), timeout=10)
