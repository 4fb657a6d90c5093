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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from stillhouse.files import Stat
from stillhouse.places import home

VERIFY = "STILLHOUSE_VERIFY"
LARGE = 64 << 20  # bytes of a file or folder from which on looking up is less work than hashing
RACY_SECONDS = 2.0
FILE = "digests.sqlite"
MOST = 900  # names in one query
TABLE = """CREATE TABLE IF NOT EXISTS digests (
    device INTEGER, inode INTEGER, size INTEGER, modified INTEGER, changed INTEGER, sha256 TEXT,
    PRIMARY KEY (device, inode)) WITHOUT ROWID"""


class Memo:
    """The known digests of some files, by what they are known by (None: nothing to know); new ones
    are kept when it is closed.
    """

    def __init__(self, stats: Sequence[Stat | None]) -> None:
        self.stats = stats
        self.large = sum(stat.size for stat in stats if stat) >= LARGE
        self.new: list[tuple[Stat, str]] = []

    def recall(self) -> list[str | None]:
        """The digests of those files that are as they were."""
        if not self.large or os.environ.get(VERIFY):
            return [None] * len(self.stats)
        return _read(self.stats)

    def remember(self, path: Path, stat: Stat, sha256: str, *, begun_ns: int) -> None:
        """Keep a digest that hashing from `begun_ns` on gave."""
        if self.large and _settled(stat, begun_ns) and Stat.of(path.stat()) == stat:
            self.new.append((stat, sha256))

    def close(self) -> None:
        if self.new:
            _write(self.new)


def _settled(stat: Stat, now_ns: int) -> bool:
    return max(stat.modified, stat.changed) < now_ns - RACY_SECONDS * 1e9


def remember_written(files: Mapping[Path, str]) -> None:
    """Keep the digests of files that this process has just written and nobody else knows; those
    written in the last moment are hashed once more by whoever reads them.
    """
    stats = {path: Stat.of(path.stat()) for path in files}
    if sum(stat.size for stat in stats.values()) >= LARGE:
        now = time.time_ns()
        _write([(stat, files[path]) for path, stat in stats.items() if _settled(stat, now)])


def _file() -> Path:
    return home() / FILE


def _read(stats: Sequence[Stat | None]) -> list[str | None]:
    found: list[str | None] = [None] * len(stats)
    if not _file().is_file():
        return found
    numbers = defaultdict[int, list[int]](list)  # device -> of its files
    for number, stat in enumerate(stats):
        if stat is not None:
            numbers[stat.device].append(number)
    # a memo that cannot be read knows nothing
    with contextlib.suppress(sqlite3.Error), contextlib.closing(_opened()) as base:
        for device, each in numbers.items():
            for first in range(0, len(each), MOST):
                some = {n: stat for n in each[first : first + MOST] if (stat := stats[n])}
                marks = ",".join("?" * len(some))  # pairs in place of these would read every row
                rows = base.execute(
                    "SELECT inode, size, modified, changed, sha256 FROM digests "
                    f"WHERE device = ? AND inode IN ({marks})",
                    [device, *(stat.inode for stat in some.values())],
                )
                known = {Stat(device, *row[:4]): row[4] for row in rows}
                for number, stat in some.items():
                    found[number] = known.get(stat)
    return found


def _write(digests: Iterable[tuple[Stat, str]]) -> None:
    rows = [(*stat, sha256) for stat, sha256 in digests]
    # what is not kept is computed again
    with contextlib.suppress(sqlite3.Error, OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_opened()) as base, base:
            base.execute(TABLE)
            base.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)", rows)


def _opened() -> sqlite3.Connection:
    return sqlite3.connect(_file(), timeout=10)
