"""The pinned data: what data.dvc says, what of it is here, and the parts that a run needs."""

import contextlib
import json
import os
import shutil
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stillhouse.errors import BadData, MissingData, StillhouseError
from stillhouse_flows.workspace.worktree import shared_cache

PIN = "data.dvc"
HOW = "Run: stillhouse data pull"


class RemoteLost(StillhouseError):
    """The DVC remote does not answer; it may come back."""


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One data version."""

    md5: str  # of the listing of every file; ends in ".dir"
    size: int
    files: int

    @property
    def short(self) -> str:
        return self.md5[:12]


def pin(root: Path) -> Pin | None:
    """The data version that the project is pinned to; None without a data.dvc."""
    file = root / PIN
    return pin_from(file.read_text(), where=str(file)) if file.is_file() else None


def pin_from(text: str, *, where: str) -> Pin:
    """The data version in the text of a data.dvc; `where` is what an error names."""
    try:
        (out,) = yaml.safe_load(text)["outs"]
        return Pin(md5=out["md5"], size=out.get("size", 0), files=out.get("nfiles", 0))
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise BadData(
            f"{where}: not a DVC file ({error}); restore it, or run: stillhouse data add"
        ) from error


def listing(cache: Path, pinned: Pin) -> Mapping[str, str] | None:
    """File (relative to data/) -> md5 of a data version; None where the cache lacks its listing."""
    file = object_file(cache, pinned.md5)
    if not file.is_file():
        return None
    return {entry["relpath"]: entry["md5"] for entry in json.loads(file.read_text())}


def object_file(cache: Path, md5: str) -> Path:
    """Where DVC's cache has the file, or the listing of the folder, with this md5."""
    return cache / "files" / "md5" / md5[:2] / md5[2:]


def below(names: Iterable[str], path: str) -> list[str]:
    """Those files that are `path`, or lie in the folder `path`."""
    path = path.strip("/")
    return [name for name in names if name == path or name.startswith(f"{path}/")]


def bring(root: Path, project: Path, cache: Path, paths: Iterable[str]) -> Pin | None:
    """Bring the parts `paths` of data/ at the version that `root` pins, and return that version.

    From DVC's cache, else from the project's own data/, else from the remote. Raises MissingData
    naming the command that gets them, RemoteLost for a remote that does not answer.
    """
    pinned = pin(root)
    if pinned == pin(project):
        check_links(project / "data", paths)
    for path in paths:
        if pinned is None:
            raise MissingData(
                f"data/{path}: there is no {PIN}, so no data version; run: stillhouse data add"
            )
        if not (
            _from_cache(root, cache, pinned, path)
            or _from_project(root, project, cache, pinned, path)
            or _from_remote(root, path)
        ):
            raise MissingData(
                f"data/{path} of version {pinned.short} is neither in DVC's cache nor in "
                f"{project / 'data'} nor in a DVC remote. {HOW} {path.partition('/')[0]}"
            )
    return pinned


def check_links(data: Path, paths: Iterable[str] = ("",)) -> None:
    """Raises BadData for a link to a folder below: DVC leaves those out of a data version."""
    for path in paths:
        inside = (Path(base) / name for base, names, _ in os.walk(data / path) for name in names)
        for folder in filter(Path.is_symlink, inside):
            raise BadData(
                f"{folder} is a link to a folder, which DVC does not follow, so no data version "
                "has its files; put them there (cp -rL) and run: stillhouse data add"
            )


def _from_cache(root: Path, cache: Path, pinned: Pin, path: str) -> bool:
    from dvc.repo import Repo

    known = listing(cache, pinned)
    wanted = below(known or (), path)
    if (
        not known
        or not wanted
        or not all(object_file(cache, known[name]).is_file() for name in wanted)
    ):
        return False
    with Repo(str(root), _wait_for_lock=True) as repo:
        repo.checkout([str(root / "data" / path)], force=True)
    return True


def _from_project(root: Path, project: Path, cache: Path, pinned: Pin, path: str) -> bool:
    """Copies: a link would let the user's next edit reach a run that goes."""
    source, aim = project / "data" / path, root / "data" / path
    if (
        not source.exists()
        or pin(project) != pinned
        or not _as_pinned(project, cache, pinned, path)
    ):
        return False
    aim.parent.mkdir(parents=True, exist_ok=True)
    copy = shutil.copytree if source.is_dir() else shutil.copy2
    copy(source, aim)
    return True


def _from_remote(root: Path, path: str) -> bool:
    from dvc.exceptions import CheckoutError
    from dvc.repo import Repo

    if remote(root) is None:
        return False
    with _remote_of(root), Repo(str(root), _wait_for_lock=True) as repo:
        try:
            repo.pull([str(root / "data" / path)])
        except CheckoutError:  # the remote answers, and lacks it
            return False
    return True


def push_results(root: Path, target: str, *, run_cache: bool = True) -> str:
    """Send what a pipeline or .dvc file tracks, and the run cache, to the DVC remote.

    Returns what was done, in words. Raises RemoteLost, MissingData where none is configured.
    """
    from dvc.repo import Repo

    place = remote(root)
    if place is None:
        raise MissingData("no DVC remote is configured. Run: dvc remote add --local -d NAME URL")
    with _remote_of(root), Repo(str(root), _wait_for_lock=True) as opened:
        repo: Any = opened  # Any: DVC binds its methods in a way no checker sees
        count: int = repo.push([str(root / target)], run_cache=run_cache)
    return f"Pushed {count} files to DVC remote '{place[0]}'"


@contextlib.contextmanager
def _remote_of(root: Path) -> Generator[None]:
    """Turns what the remote's own library raises inside into RemoteLost."""
    from dvc.exceptions import CheckoutError

    name, url = remote(root) or ("", "")
    folder = Path(url)
    # DVC takes a folder that is not there, an unmounted disk, for an empty remote
    if folder.is_absolute() and not folder.is_dir():
        raise RemoteLost(f"DVC remote '{name}': {url} not found; mount it, or set another")
    try:
        yield
    except CheckoutError:
        raise
    except Exception as error:  # botocore's, paramiko's, aiohttp's ...
        words = " ".join(str(error).split()) or type(error).__name__
        raise RemoteLost(f"DVC remote '{name}' ({url}): {words}") from error


def _as_pinned(project: Path, cache: Path, pinned: Pin, path: str) -> bool:
    """Whether the project's own copy of `path` is the pinned one, whatever its other data are."""
    from dvc.repo import Repo

    if known := listing(cache, pinned):
        wanted = {name: known[name] for name in below(known, path)}
        return bool(wanted) and _md5s(project / "data", path) == wanted
    with Repo(str(project), _wait_for_lock=True) as repo:
        (stage,) = repo.stage.collect(PIN)
        return stage.outs[0].get_hash().value == pinned.md5


def _md5s(data: Path, path: str) -> dict[str, str]:
    from dvc_data.hashfile.hash import file_md5
    from dvc_objects.fs.local import localfs

    start = data / path
    files = [start] if start.is_file() else sorted(p for p in start.rglob("*") if p.is_file())
    return {f.relative_to(data).as_posix(): file_md5(str(f), localfs) for f in files}


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One folder of data/, as pinned and as it is here."""

    name: str
    files: int  # pinned; of those here where the version's listing is not
    here: int
    changed: int  # modified, added or removed while others of it are here

    def words(self) -> str:
        if not self.here:
            return "not here"
        return f"{self.changed} files differ" if self.changed else "here"


def datasets(root: Path) -> list[Dataset]:
    """Every folder of data/, pinned or here."""
    pinned = pin(root)
    known = (listing(shared_cache(root), pinned) if pinned else None) or {}
    here = _here(root / "data")
    differ = _differing(root) if known and here else set[str]()
    names = sorted({name.partition("/")[0] for name in [*known, *here]})
    return [_dataset(name, known, here, differ) for name in names]


def _dataset(
    name: str, known: Iterable[str], here: Iterable[str], differ: Iterable[str]
) -> Dataset:
    found = len(below(here, name))
    return Dataset(
        name=name,
        files=len(below(known, name)) or found,
        here=found,
        changed=len(below(differ, name)),
    )


def _here(data: Path) -> list[str]:
    return [p.relative_to(data).as_posix() for p in sorted(data.rglob("*")) if p.is_file()]


def _differing(root: Path) -> set[str]:
    """Files of data/ that are not as pinned, by DVC's own comparison (it remembers hashes)."""
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True) as repo:
        status: Mapping[str, Any] = repo.data_status(granular=True)  # Any: DVC's dictionaries
    moved = status.get("uncommitted", {})
    paths = [p for kind in ("added", "modified", "deleted") for p in moved.get(kind, [])]
    return {p.removeprefix("data/") for p in paths if p.startswith("data/") and not p.endswith("/")}


def remote(root: Path) -> tuple[str, str] | None:
    """Name and place of the default DVC remote; None where none is configured."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            name = repo.config["core"].get("remote")
            return (name, repo.config["remote"][name]["url"]) if name else None
    except (NotDvcRepoError, KeyError):
        return None
