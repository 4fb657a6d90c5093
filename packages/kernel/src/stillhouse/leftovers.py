"""What a process that was killed leaves behind, and who may remove it: whoever gets the lock that
the dead process held.
"""

import re
import shutil
import tempfile
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "stillhouse-"
BESIDE = (".run.json", ".scores.json", ".main.json", ".curves.tsv")


@contextmanager
def temporary() -> Generator[Path]:
    """A new empty folder for what must not be kept; it goes when the block ends."""
    folder = Path(tempfile.gettempdir()) / f"{PREFIX}{uuid.uuid4().hex}"
    lock = folder.with_suffix(".lock")
    with FileLock(lock):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def dead_temporaries() -> Iterator[Path]:
    """The temporary folders of processes that were killed, each locked while it is yielded."""
    for lock in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*.lock")):
        folder = lock.with_suffix("")
        with suppress(OSError), unheld(lock) as free:
            if free:
                if folder.is_dir():
                    yield folder
                if not folder.is_dir():
                    lock.unlink(missing_ok=True)


def remove_temporaries() -> None:
    """Remove the temporary folders of processes that were killed."""
    for folder in dead_temporaries():
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def unheld(lock: Path) -> Generator[bool]:
    """Whether no process holds this lock; held by this one while the block runs."""
    if not lock.exists():
        yield True
        return
    try:
        with FileLock(lock, timeout=0):
            yield True
    except Timeout:
        yield False


def asides(folder: Path, name: str) -> list[Path]:
    """What `files.writing` and `files.writing_file` left beside `folder / name`, and beside the
    records of a stage of that name. For whoever holds the lock of its writer.
    """
    stem = re.escape(name)
    beside = "|".join(re.escape(end) for end in BESIDE)
    pattern = re.compile(rf"\.{stem}\.[0-9a-f]{{8}}(\.old)?|\.[0-9a-f]{{8}}\.{stem}({beside})?")
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))


def remove_asides(folder: Path, name: str) -> None:
    """Remove what `asides` finds."""
    for path in asides(folder, name):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
