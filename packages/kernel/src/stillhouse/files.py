"""Files that are either whole or absent: written aside, flushed to the disk, renamed; the file
system's own no; and the files that a user names to read.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Container, Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from stillhouse.errors import BadData, MissingData, StorageError

REFUSALS = {
    errno.ENOSPC: "no space left on the device; free some or choose another place",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "not permitted to write here",
    errno.EPERM: "not permitted to write here",
    errno.EEXIST: "a file, where a folder is to be; move it",
    errno.ENOTDIR: "a file, where a folder is to be; move it",
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
            share(aside)
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


def share(path: Path) -> None:
    """Give a new file, or all below a new folder, the permissions that the umask leaves: some
    libraries write files that their owner alone may read, whatever the umask.
    """
    probe = path.with_name(f".{uuid.uuid4().hex[:8]}.umask")
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for file in [path, *path.rglob("*")]:
        # not where it has them: that would count as a change of the file
        if file.is_file() and not file.is_symlink() and file.stat().st_mode != mode:
            file.chmod(mode)


def write_text(path: Path, text: str) -> None:
    """Write a text file aside, flush it, rename it into place."""
    with writing_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def writing_file(final: Path) -> Generator[Path]:
    """A path beside `final`, of the same suffix; what is written there takes its place when the
    block ends well, and goes when it does not. Raises StorageError naming the place.
    """
    with storage(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        aside = final.with_name(f".{uuid.uuid4().hex[:8]}.{final.name}")
        try:
            yield aside
            share(aside)
            fsync(aside)
            aside.replace(final)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        fsync(final.parent)


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


class Stat(NamedTuple):
    """What a file is known by."""

    device: int
    inode: int
    size: int
    modified: int  # nanoseconds
    changed: int

    @classmethod
    def of(cls, found: os.stat_result) -> "Stat":
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Below(NamedTuple):
    """A file below a folder, or a folder that holds nothing."""

    name: str  # relative, with "/" between folders
    stat: Stat | None  # None: a folder


def below(folder: Path) -> list[Below]:
    """Every file below a folder, and every folder that holds nothing, sorted as paths are; links
    are followed. Names and numbers alone: of 200,000 files paths would be half a gigabyte.

    Raises BadData for a link to nothing and for one that leads back into a folder above it.
    """
    return list(_below(folder, "", above=()))


def tree(folder: Path) -> list[Path]:
    """The paths of what lies `below` a folder."""
    return [folder / found.name for found in below(folder)]


def _below(folder: Path, ahead: str, *, above: tuple[tuple[int, int], ...]) -> Iterator[Below]:
    stat = folder.stat()
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        raise BadData(f"{folder}: a link back to a folder that holds it; remove the link")
    for entry in _entries(folder):
        name = f"{ahead}{entry.name}"
        if entry.is_dir():
            path = folder / entry.name
            if not any(_entries(path)):
                yield Below(name, None)
            yield from _below(path, f"{name}/", above=(*above, here))
        elif entry.is_file():
            yield Below(name, Stat.of(entry.stat()))
        elif entry.is_symlink():
            path = folder / entry.name
            raise BadData(
                f"{path}: a link to {path.readlink()}, which was not found; remove the link, or "
                "bring back what it leads to"
            )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """By name: so walked, all below a folder stands as paths are sorted, without a comparison of
    paths, which takes half a minute for hundreds of thousands.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except PermissionError as error:
        raise BadData(f"{folder}: not permitted to read this folder") from error


def each_file(inputs: Iterable[Path], suffixes: Container[str], *, kind: str) -> Iterator[Path]:
    """The files themselves, and of a folder all visible ones below it of these suffixes (in lower
    case), in order. Raises MissingData for a missing path or a folder without one; `kind`
    is what the message calls a file, as "image".
    """
    from stillhouse.data.sources import visible_files  # torch comes with it

    for path in inputs:
        if path.is_file():
            yield path
        elif path.is_dir():
            found = [p for p in visible_files(path) if p.suffix.lower() in suffixes]
            if not found:
                raise MissingData(f"{path}: no {kind}s in this folder; give one with {kind}s")
            yield from found
        else:
            raise MissingData(f"{path}: there is no such file; give a {kind} or a folder")


def free_name(stem: str, taken: set[str]) -> str:
    """The name, numbered where it is taken already; added to `taken`."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name
