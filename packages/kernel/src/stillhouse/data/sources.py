"""Which files below a folder are samples: visible ones, each once, in one split only.

What is left out is never left out silently: it is counted in one line (`notes.note`).
"""

import contextlib
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol, runtime_checkable

from stillhouse.data.notes import note
from stillhouse.errors import BadData

# what archives, NAS and desktops leave beside data, and whatever begins with a dot
CLUTTER = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini")
HEAD = 1 << 12  # bytes that are compared before whole files are
# what lies in each folder that was read; None where each look is a new one
_Entries = list[tuple[Path, bool]]  # and whether it is a folder itself
_listed: ContextVar[dict[Path, _Entries] | None] = ContextVar("listed", default=None)


@runtime_checkable
class Row(Protocol):
    """Encoded bytes in a row of a file, read on access."""

    def read(self) -> bytes: ...


Content = Path | bytes | Row  # of a sample


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the user's data."""
    return name.startswith(".") or name in CLUTTER


@contextlib.contextmanager
def listed_once() -> Generator[None]:
    """Within it a folder is walked once, however often its files are listed: several looks at
    data that nobody writes meanwhile.
    """
    token = _listed.set({})
    try:
        yield
    finally:
        _listed.reset(token)


def visible_files(source: Path) -> list[Path]:
    """All files below a folder but hidden ones and those in hidden folders, in order; links are
    followed. `source` itself where it is a file.

    Raises BadData for a link to nothing or to a folder above it, and for a name that is not UTF-8.
    """
    if source.is_file():
        return [source]
    return list(_files(source, (source.resolve(),)))


def visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder, but hidden ones, in order."""
    return [path for path, holds in _visible(folder) if holds]


def _files(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    for path, holds in _visible(folder):
        if not holds:
            yield path
            continue
        real = path.resolve() if path.is_symlink() else above[-1] / path.name
        if real in above:
            raise BadData(f"{path}: a link to a folder that it lies in; remove it")
        yield from _files(path, (*above, real))


def _visible(folder: Path) -> _Entries:
    """What lies in a folder, by name."""
    known = _listed.get()
    if known is None:
        return _read(folder)
    if folder not in known:
        known[folder] = _read(folder)
    return known[folder]


def _read(folder: Path) -> _Entries:
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not hidden(entry.name)]
    except OSError as error:
        raise BadData(f"{folder}: cannot be read ({error.strerror}); check the folder") from error
    return [_checked(folder, entry) for entry in sorted(found, key=lambda entry: entry.name)]


def _checked(folder: Path, entry: os.DirEntry[str]) -> tuple[Path, bool]:
    if not _decodable(entry.name):
        raise BadData(f"{folder}: the name {entry.name!a} in it is not UTF-8; rename the file")
    path = folder / entry.name
    if entry.is_symlink() and not path.exists():
        raise BadData(
            f"{path}: a link to {str(path.readlink())!a}, which is not found; "
            "restore the file or remove the link"
        )
    return path, entry.is_dir()


def _decodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def note_left_out(source: Path, every: Iterable[Path], used: Iterable[Path]) -> None:
    """Count in one line, by their suffixes, the files of `every` that are not among `used`."""
    left = sorted(set(every) - set(used))
    if not left:
        return
    counts = Counter(path.suffix.lower() or "without suffix" for path in left)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
    first = left[0].relative_to(source) if left[0].is_relative_to(source) else left[0]
    note(f"{source}: {len(left)} file(s) not read: {kinds} (first: {first})")


def check_stems(files: Iterable[Path]) -> None:
    """Raises BadData for two files that differ in their suffix only: an annotation names both."""
    seen: dict[Path, Path] = {}
    for file in files:
        first = seen.setdefault(file.with_suffix(""), file)
        if first != file:
            raise BadData(f"{file}: {first} has the same stem; keep one of them")


def check_keys(splits: Mapping[str, Iterable[tuple[str, Hashable]]]) -> None:
    """Raises BadData for a sample, given as (where, key), whose key is in two splits: for pairs
    of files the stem, for frames their number.
    """
    seen: dict[Hashable, tuple[str, str]] = {}
    for split, samples in splits.items():
        for where, key in samples:
            other, first = seen.setdefault(key, (split, where))
            if other != split:
                raise BadData(
                    f"{where}: in {split}, and in {other} too ({first}); keep it in one split"
                )


def check_apart(splits: Mapping[str, Sequence[tuple[str, Content]]]) -> None:
    """Raises BadData where a file, given as (where, content), has the bytes of one in another
    split: a score on it would be no test.

    Of encoded rows published benchmarks have a few: those are counted in a line.
    """
    same = shared(splits)
    for (where, content), first in same:
        if isinstance(content, Path):
            more = f"; so have {len(same) - 1} more" if len(same) > 1 else ""
            raise BadData(f"{where}: has the bytes of {first}, in another split{more}; keep one")
    if same:
        (where, _), first = same[0]
        note(f"{len(same)} image(s) are in two splits with the same bytes ({where}: {first})")


def copied(samples: Iterable[tuple[str, Content]]) -> set[str]:
    """Where the samples are, given as (where, content), whose bytes another has too: none of them
    can be held out for a test.
    """
    each = {where: [(where, content)] for where, content in samples}
    return {where for (later, _), first in shared(each) for where in (later, first)}


def shared(
    splits: Mapping[str, Sequence[tuple[str, Content]]],
) -> list[tuple[tuple[str, Content], str]]:
    """Samples whose bytes an earlier split has, each with where it has them.

    Whole files are read only where size and first bytes agree.
    """
    heads: dict[Hashable, list[tuple[str, tuple[str, Content]]]] = defaultdict(list)
    for split, samples in splits.items():
        for sample in samples:
            heads[_head(sample[1])].append((split, sample))
    twice: list[tuple[tuple[str, Content], str]] = []
    for alike in heads.values():
        if len({split for split, _ in alike}) > 1:
            twice += _twice(alike)
    return twice


def _twice(
    alike: Iterable[tuple[str, tuple[str, Content]]],
) -> Iterator[tuple[tuple[str, Content], str]]:
    seen: dict[bytes, tuple[str, str]] = {}
    for split, sample in alike:
        other, first = seen.setdefault(_whole(sample[1]), (split, sample[0]))
        if other != split:
            yield sample, first


def _head(content: Content) -> tuple[int, bytes]:
    """How many bytes it has, and the first of them, hashed."""
    if not isinstance(content, Path):
        found = _bytes(content)
        return len(found), hashlib.sha256(found[:HEAD]).digest()
    with content.open("rb") as stream:
        return os.fstat(stream.fileno()).st_size, hashlib.sha256(stream.read(HEAD)).digest()


def _whole(content: Content) -> bytes:
    if not isinstance(content, Path):
        return hashlib.sha256(_bytes(content)).digest()
    with content.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def _bytes(content: bytes | Row) -> bytes:
    return content if isinstance(content, bytes) else content.read()
