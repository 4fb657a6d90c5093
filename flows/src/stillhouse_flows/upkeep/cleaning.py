"""What runs leave on this machine, and what of it goes when it is old: workspaces, their branches,
and what Prefect remembers. Promoted runs and those that go stay, whatever their age.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stillhouse.errors import StillhouseError
from stillhouse_flows.upkeep.failures import repeated
from stillhouse_flows.workspace.branches import Repository, repository
from stillhouse_flows.workspace.git import GitError, git
from stillhouse_flows.workspace.worktree import (
    discard,
    idle,
    keep_mark,
    remove_folder,
    run_lock,
    workspaces,
)

MARK = "refs/tags/promoted"


@dataclass(frozen=True, kw_only=True)
class Left:
    """What is left of one run."""

    run: str
    folder: Path | None  # its workspace
    branch: bool
    repeated: bool  # failed as a later run of the recipe did
    changed: float  # seconds since the epoch
    size: int  # bytes of the workspace that are nowhere else


def survey(project: Path) -> list[Left]:
    """Runs that could be cleaned, oldest first."""
    repo, place = _repository(project), workspaces(project)
    dates = _branches(repo) if repo else {}
    folders = {p.name: p for p in place.iterdir() if p.is_dir()} if place.is_dir() else {}
    spared = promoted(repo) if repo else set[str]()
    again = repeated(project) if repo else []
    found = [
        _left(run, folders.get(run), dates.get(run), repeated=run in again)
        for run in sorted({*dates, *folders} - spared)
        if not keep_mark(project, run).exists()
    ]
    return sorted(found, key=lambda each: each.changed)


def promoted(repo: Repository) -> set[str]:
    """Runs whose student was promoted once: their tags stay."""
    return set(git(repo.top, "for-each-ref", "--format=%(refname:lstrip=3)", MARK).splitlines())


def clean(project: Path, *, seconds: float, branches: bool, dry: bool) -> Iterator[Left]:
    """Remove runs that are older than so many seconds, with `branches` their branches too; and,
    whatever their age, runs that failed as a later one did. Yields each as it goes.
    """
    repo = _repository(project)
    for left in survey(project):
        old = time.time() - left.changed >= seconds and (left.folder or branches)
        if not (old or left.repeated):
            continue
        with idle(run_lock(project, left.run)) as free:
            if free and not dry:
                _remove(project, left, branches=branches or left.repeated)
        if free:
            yield left
    if repo and not dry:
        git(repo.top, "worktree", "prune")


def _remove(project: Path, left: Left, *, branches: bool) -> None:
    if branches:
        discard(project, left.run)
    elif left.folder:
        remove_folder(left.folder)


def _repository(project: Path) -> Repository | None:
    try:
        return repository(project)
    except StillhouseError:
        return None


def _branches(repo: Repository) -> Mapping[str, float]:
    shown = "--format=%(refname:lstrip=3)%09%(committerdate:unix)"
    rows = git(repo.top, "for-each-ref", shown, "refs/heads/runs").splitlines()
    return {run: float(date) for run, _, date in (row.partition("\t") for row in rows)}


def _left(run: str, folder: Path | None, committed: float | None, *, repeated: bool) -> Left:
    stats = [p.lstat() for p in (folder, *folder.rglob("*"))] if folder else []
    # a branch without a commit of its own has the date of the user's
    times = [s.st_mtime for s in stats] or [committed or 0.0]
    # a file that DVC has linked from its cache frees nothing
    size = sum(s.st_size for s in stats if s.st_nlink == 1)
    return Left(
        run=run,
        folder=folder,
        branch=committed is not None,
        repeated=repeated,
        changed=max(times),
        size=size,
    )


def clean_prefect(seconds: float, *, dry: bool) -> int:
    """Have Prefect's server forget runs that ended so long ago; how many."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterEndTime

    before: Any = datetime.fromtimestamp(time.time() - seconds, UTC)  # Any: Prefect's own kind
    old = FlowRunFilter(end_time=FlowRunFilterEndTime(before_=before))
    count = 0
    with get_client(sync_client=True) as client:
        while runs := client.read_flow_runs(flow_run_filter=old, limit=200):
            count += len(runs)
            if dry:
                break
            for run in runs:
                client.delete_flow_run(run.id)
    return count


def collect(project: Path, others: Sequence[Path] = ()) -> int:
    """Remove from DVC's cache what nothing names: no branch, no tag, no workspace of a run, no
    working tree of the repository, and none of the projects `others`; bytes freed.

    Raises StillhouseError while a run goes: what a stage has just left is named nowhere yet.
    """
    from dvc.repo import Repo

    _refuse_while_running(project)
    users = [p for p in [*_trees(project), *others] if (p / ".dvc").is_dir()]
    with Repo(str(project), _wait_for_lock=True) as opened:
        repo: Any = opened  # Any: DVC binds its methods in a way no checker sees
        cache = Path(repo.cache.legacy.path)
        before = _bytes(cache)
        repo.gc(
            workspace=True,
            all_branches=True,
            all_tags=True,
            force=True,
            repos=[str(p) for p in users],
        )
    return before - _bytes(cache)


def _refuse_while_running(project: Path) -> None:
    place = workspaces(project)
    for lock in sorted(place.glob("*.lock")) if place.is_dir() else []:
        try:
            with FileLock(lock, timeout=0):
                continue
        except Timeout as error:
            raise StillhouseError(f"run {lock.stem} goes on; wait until it has ended") from error


def _trees(project: Path) -> list[Path]:
    """Every other working tree of the repository; of a run outside git, its copy."""
    place = workspaces(project)
    found = [p for p in place.iterdir() if p.is_dir()] if place.is_dir() else []
    try:
        rows = git(project, "worktree", "list", "--porcelain").splitlines()
        prefix = git(project, "rev-parse", "--show-prefix")
    except GitError:
        return found
    trees = [Path(row.removeprefix("worktree ")) for row in rows if row.startswith("worktree ")]
    below = [tree / prefix for tree in [*trees, *found]]
    return [p for p in dict.fromkeys(below) if p.resolve() != project.resolve()]


def _bytes(folder: Path) -> int:
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file())
