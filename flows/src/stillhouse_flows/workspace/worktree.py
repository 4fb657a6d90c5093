"""Workspaces: each run has a working tree and a branch of its own, so that two runs never meet and
nobody's files are touched.

$STILLHOUSE_HOME/workspaces/<repository>/<run>/        the working tree; outside git, a copy
$STILLHOUSE_HOME/workspaces/<repository>/<run>.lock    held while the run goes
$STILLHOUSE_HOME/workspaces/<repository>/<run>.json    what a later process needs to open it again
$STILLHOUSE_HOME/workspaces/<repository>/<run>.keep    there for a promoted run: cleaning spares it
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stillhouse.errors import MissingExtra, StillhouseError
from stillhouse.files import storage, write_text
from stillhouse.inputs import PROJECT
from stillhouse.places import home
from stillhouse_flows.workspace.git import (
    GitError,
    Snapshot,
    commit_all,
    git,
    has_branch,
    head,
    ignored,
    resolve,
    snapshot,
    top,
)
from stillhouse_flows.workspace.sources import source_folders, stage_environment

KEPT = 20
# no stage reads pages, and their figures may be most of a repository
LEFT_OUT = "docs"
LOCK_SECONDS = 60.0
# what a copied folder leaves behind: environments, results, data (brought on its own), DVC's state
NEVER_COPIED = {"__pycache__", ".venv", "venv", "node_modules"}
NOT_COPIED = {".": {".git", "runs", "data"}, ".dvc": {"cache", "tmp"}}
IGNORED = ("/runs/", "/data", "__pycache__/", "*.pyc")
DVC_IGNORED = "/config.local\n/tmp\n/cache\n"


@dataclass(frozen=True, kw_only=True)
class RunWorkspace:
    """One run's own copy of a project."""

    project: Path  # the user's project
    folder: Path  # the working tree
    root: Path  # the project inside it
    run: str
    branch: str  # empty outside git
    start: Snapshot
    cache: Path  # DVC's cache, shared with the project

    def environment(self, device: str) -> Mapping[str, str]:
        """The environment of everything that runs in this workspace."""
        env = stage_environment(self.root, source_folders(self.project), device)
        return {**env, PROJECT: str(self.project)}

    def started(self) -> bool:
        """Whether the run has a commit of its own: it goes on after a kill."""
        return bool(self.branch) and head(self.root) != self.start.commit

    def commit(self, message: str, *, also: Iterable[Path] = ()) -> str:
        """Commit the tree, and the files `also` though git ignores them; empty outside git."""
        return commit_all(self.root, message, also=also) if self.branch else ""


@contextmanager
def workspace(
    project: Path, label: str, *, ref: str = "", number: str = "", keep: bool = True
) -> Generator[RunWorkspace]:
    """A new workspace of `project` at `ref`, or with its files as they lie there now; one of the
    same `label` and `number` is opened again as it was left.

    Locked while the block runs and kept after it; without `keep` it has no branch, and goes.
    """
    project = project.resolve()
    place = workspaces(project)
    run = f"{label}-{number or uuid.uuid4().hex[:8]}"
    with storage(place):
        place.mkdir(parents=True, exist_ok=True)
        with _locked(place / f"{run}.lock", run):
            opened = _reopened(project, place / run, run)
            opened = opened or _open(project, place / run, run, ref, keep=keep)
            prune(place, keep=KEPT)
            try:
                yield opened
            finally:
                if not keep:
                    forget(opened)
    (place / f"{run}.lock").unlink(missing_ok=True)


def workspaces(project: Path) -> Path:
    """The folder that a project's workspaces lie in."""
    return home() / "workspaces" / _repository(project.resolve())


def run_lock(project: Path, run: str) -> Path:
    """The file that is locked while a run of this machine goes."""
    return workspaces(project) / f"{run}.lock"


@contextmanager
def idle(lock: Path) -> Generator[bool]:
    """Whether no process of this machine is at the run whose lock this is; inside, none begins.
    The lock's file goes where the block ends well.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        held.release()
    lock.unlink(missing_ok=True)


def keep_mark(project: Path, run: str) -> Path:
    """The file whose presence has a workspace kept, whatever its age."""
    return workspaces(project) / f"{run}.keep"


@contextmanager
def _locked(path: Path, run: str) -> Generator[None]:
    lock = FileLock(path)
    try:
        # the processes of a run that was killed are gone within seconds
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise StillhouseError(
            f"run {run} still goes on in another process; stop it first"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _reopened(project: Path, folder: Path, run: str) -> RunWorkspace | None:
    """The workspace that an earlier process of this run left; None where it left no whole one."""
    record = folder.with_name(f"{run}.json")
    kept = json.loads(record.read_text()) if record.is_file() else None
    if kept is None or not (folder.is_dir() or kept["branch"]):
        # a process that was killed while it made this workspace may have left parts
        discard(project, run)
        return None
    if not folder.is_dir():  # pruned: its commits are there
        tree = _tree(project) or project
        git(tree, "worktree", "prune")
        git(tree, "worktree", "add", "--quiet", "--no-checkout", str(folder), kept["branch"])
        _check_out(folder, folder / kept["root"])
        _settle_dvc(project, folder / kept["root"], folder, Path(kept["cache"]), in_git=True)
    return RunWorkspace(
        project=project,
        folder=folder,
        root=folder / kept["root"],
        run=run,
        branch=kept["branch"],
        start=Snapshot(**kept["start"]),
        cache=Path(kept["cache"]),
    )


def _repository(project: Path) -> str:
    """Readable, and different for two projects of the same name."""
    return f"{project.name}-{hashlib.sha256(str(project).encode()).hexdigest()[:6]}"


def _open(project: Path, folder: Path, run: str, ref: str, *, keep: bool) -> RunWorkspace:
    tree = _tree(project)
    if tree is None:
        if ref:
            raise StillhouseError(
                f"--ref {ref}: {project} is not in a git repository; leave it out"
            )
        shutil.copytree(project, folder, ignore=_not_copied(project), symlinks=True)
        root, branch, start = folder, "", Snapshot(commit="", base="")
    else:
        git(tree, "worktree", "prune")
        start = resolve(tree, ref) if ref else snapshot(tree)
        branch = f"runs/{run}" if keep else ""
        kind = ("-b", branch) if branch else ("--detach",)
        words = ("worktree", "add", "--quiet", "--no-checkout", *kind, str(folder), start.commit)
        git(tree, *words)
        root = folder / project.relative_to(tree)
        _check_out(folder, root)
    cache = shared_cache(project)
    _settle_dvc(project, root, folder, cache, in_git=tree is not None)
    record = {
        "root": root.relative_to(folder).as_posix(),
        "branch": branch,
        "start": asdict(start),
        "cache": str(cache),
    }
    # last: a workspace without it is not whole
    write_text(folder.with_name(f"{run}.json"), json.dumps(record, indent=1) + "\n")
    return RunWorkspace(
        project=project, folder=folder, root=root, run=run, branch=branch, start=start, cache=cache
    )


def _check_out(folder: Path, root: Path) -> None:
    """The files of a new working tree but for LEFT_OUT, which its commits have all the same."""
    git(folder, "read-tree", "HEAD")
    places = {
        place.relative_to(folder).as_posix() for place in (folder / LEFT_OUT, root / LEFT_OUT)
    }
    if names := git(folder, "ls-files", "-z", "--", *sorted(places)):
        git(folder, "update-index", "-z", "--skip-worktree", "--stdin", text=names)
    git(folder, "checkout-index", "--all", "--quiet", "--index")


def _tree(project: Path) -> Path | None:
    """The working tree that holds `project`; None outside git, or where git ignores the project."""
    tree = top(project)
    return None if tree not in (None, project) and ignored(tree, project) else tree


def _not_copied(project: Path) -> Callable[[str, list[str]], list[str]]:
    def ignore(folder: str, names: list[str]) -> list[str]:
        here = Path(folder)
        skipped = NEVER_COPIED | NOT_COPIED.get(here.relative_to(project).as_posix(), set())
        # a home inside the project would be copied into itself
        return [n for n in names if n in skipped or here / n == home()]

    return ignore


def shared_cache(project: Path) -> Path:
    """The project's DVC cache; under home() for a project that has no .dvc folder."""
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            return Path(repo.cache.legacy.path)
    except NotDvcRepoError:
        return home() / "cache" / _repository(project)


def _settle_dvc(project: Path, root: Path, folder: Path, cache: Path, *, in_git: bool) -> None:
    """Make the workspace a DVC repository on the shared cache, with the ignores that it needs."""
    dvc = next((p / ".dvc" for p in (root, *root.parents) if (p / ".dvc").is_dir()), root / ".dvc")
    if not dvc.is_relative_to(folder):
        dvc = root / ".dvc"
    dvc.mkdir(exist_ok=True)
    _ensure(dvc / "config", "")
    _ensure(dvc / ".gitignore", DVC_IGNORED)
    _ensure_lines(dvc.parent / ".dvcignore", IGNORED[2:])
    if in_git:
        _ensure_lines(root / ".gitignore", IGNORED)
    (dvc / "config.local").write_text(dvc_config(dvc, cache, in_git=in_git))
    (dvc / "config.local").chmod(0o600)  # a remote's may hold a password
    bring_remotes(project, dvc.parent)


def dvc_config(dvc: Path, cache: Path, *, in_git: bool) -> str:
    """Text of a config.local for the folder `dvc` = .dvc, on the shared cache."""
    lines = [
        "[core]",
        "    analytics = false",
        "    check_update = false",
        "    autostage = false",
        # else every workspace leaves a folder in /var/tmp
        f'    site_cache_dir = "{dvc / "tmp" / "site"}"',
        *([] if in_git else ["    no_scm = true"]),
        "[cache]",
        f'    dir = "{cache}"',
        # no symlinks: they would be committed as symlinks
        '    type = "reflink,hardlink,copy"',
    ]
    return "\n".join(lines) + "\n"


def bring_remotes(project: Path, root: Path) -> None:
    """The project's DVC remotes, also of its config.local: a run pulls and pushes there."""
    from dvc.config import Config
    from dvc.repo import Repo

    if not (project / ".dvc").is_dir():
        return
    with Repo(str(project)) as repo:
        remotes = {
            # a relative address leads elsewhere from there; this one is absolute
            name: {k: os.fspath(v) if k == "url" else v for k, v in options.items()}
            for name, options in repo.config["remote"].items()
        }
        default = repo.config["core"].get("remote")
    if not remotes:
        return
    if default in remotes:
        _check_installed(default, remotes[default]["url"])
    with Config(str(root / ".dvc"), validate=True).edit("local") as opened:
        local: Any = opened  # Any: DVC's nested dictionaries
        local["remote"] = remotes
        if default:
            local["core"]["remote"] = default


def _check_installed(name: str, url: str) -> None:
    """DVC looks at its default remote at almost any call, and each kind is a package of its own."""
    from dvc.fs import get_fs_cls

    try:
        get_fs_cls({"url": url})
    except ImportError as error:
        kind = url.partition(":")[0]
        where = f"DVC remote '{name}' ({url})"
        raise MissingExtra(where, f"dvc-{kind}", install=f"uv add dvc-{kind}") from error


def _ensure(path: Path, text: str) -> None:
    if not path.exists():
        path.write_text(text)


def _ensure_lines(path: Path, lines: Iterable[str]) -> None:
    present = path.read_text().splitlines() if path.exists() else []
    # "/runs" and "runs/" say the same as "/runs/"
    known = {line.strip().strip("/") for line in present}
    missing = [line for line in lines if line.strip("/") not in known]
    if missing:
        path.write_text("\n".join([*present, *missing]) + "\n")


def prune(place: Path, *, keep: int) -> list[Path]:
    """Remove all but the newest `keep` workspaces, except of runs that go and promoted ones; their
    branches stay.
    """
    folders = [p for p in place.iterdir() if p.is_dir() and not _marked(p)]
    folders.sort(key=lambda p: p.stat().st_mtime_ns, reverse=True)
    gone: list[Path] = []
    for folder in folders[keep:]:
        with idle(place / f"{folder.name}.lock") as free:
            if free:
                remove_folder(folder)
                gone.append(folder)
    return gone


def _marked(folder: Path) -> bool:
    return folder.with_name(f"{folder.name}.keep").exists()


def forget(space: RunWorkspace) -> None:
    """Leave neither folder nor branch of a workspace."""
    discard(space.project, space.run)


def discard(project: Path, run: str) -> None:
    """Leave neither folder nor branch of a run."""
    folder = workspaces(project) / run
    folder.with_name(f"{run}.json").unlink(missing_ok=True)
    if folder.is_dir():
        remove_folder(folder)
    tree = _tree(project)
    if tree is not None and has_branch(tree, f"runs/{run}"):
        git(tree, "worktree", "prune")
        git(tree, "branch", "--quiet", "-D", f"runs/{run}")


def remove_folder(folder: Path) -> None:
    """Remove a working tree with git's entry of it, or a copied folder."""
    try:
        git(folder, "worktree", "remove", "--force", "--force", str(folder))
    except GitError:
        shutil.rmtree(folder, ignore_errors=True)
