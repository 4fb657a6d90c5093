"""Files that are either whole or absent: written aside, flushed to the disk, renamed; and the file
system's own no.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from stillhouse.errors import StorageError

REFUSALS = {
    errno.ENOSPC: "no space left on the device; free some or choose another place",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "not permitted to write here",
    errno.EPERM: "not permitted to write here",
}


@contextmanager
def storage(path: Path) -> Generator[None]:
    """Turns the file system's refusals inside into a StorageError that names the place."""
    try:
        yield
    except OSError as error:
        if error.errno in REFUSALS:
            raise StorageError(f"{error.filename or path}: {REFUSALS[error.errno]}") from error
        raise
    except Exception as error:  # libraries wrap the operating system's errors in their own
        if "No space left on device" in str(error):
            raise StorageError(f"{path}: {REFUSALS[errno.ENOSPC]}") from error
        raise


@contextmanager
def writing(final: Path) -> Generator[Path]:
    """A new empty folder beside `final` that takes its place when the block ends well, and goes
    when it does not.
    """
    aside = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
    with storage(final):
        aside.mkdir(parents=True)
        try:
            yield aside
            fsync_tree(aside)
            _replace(aside, final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise


def _replace(aside: Path, final: Path) -> None:
    if final.exists():
        old = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
        final.rename(old)
        aside.rename(final)
        shutil.rmtree(old)
    else:
        aside.rename(final)
    fsync(final.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file aside, flush it, rename it into place."""
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            aside.write_text(text, encoding="utf-8")
            fsync(aside)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        fsync(path.parent)


def fsync(path: Path) -> None:
    """Flush one file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Flush every file below a folder, and the folders."""
    for path in [*folder.rglob("*"), folder]:
        fsync(path)
