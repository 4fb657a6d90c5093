"""Git from the outside: one call, snapshots that touch neither tree nor index, and commits."""

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import StillhouseError
from stillhouse.leftovers import temporary

# set by git for its hooks; they would point every command here at the hook's repository and index
FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR")
# a run's commits are bookkeeping: no hook, no signature, no terminal
QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "commit.gpgsign=false", "-c", "advice.all=false")
NOBODY = {
    "GIT_AUTHOR_NAME": "stillhouse",
    "GIT_AUTHOR_EMAIL": "stillhouse@localhost",
    "GIT_COMMITTER_NAME": "stillhouse",
    "GIT_COMMITTER_EMAIL": "stillhouse@localhost",
}


class GitError(StillhouseError):
    """Git refused; the message is its own last line."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A commit of a working tree as it lies there, and how it differs from its parent."""

    commit: str
    base: str  # the commit checked out; empty in a repository without one
    changed: int = 0  # tracked files that differ, removed ones included
    added: int = 0  # untracked files that are not ignored

    def sentence(self) -> str:
        """What was taken, in words."""
        if not self.base:
            return f"{self.added} files, none committed yet"
        if not (self.changed or self.added):
            return f"commit {self.base[:12]}"
        return f"commit {self.base[:12]} + {self.changed} changed and {self.added} untracked files"


def git(root: Path, *words: str, env: Mapping[str, str] | None = None, text: str = "") -> str:
    """What git prints when it reads `text`, stripped; raises GitError with its reason."""
    command = ["git", *QUIET, *words]
    clean = {k: v for k, v in os.environ.items() if k not in FOREIGN} | dict(env or {})
    try:
        done = subprocess.run(
            command, cwd=root, env=clean, input=text, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise GitError("git is not installed; a flow run needs it") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise GitError(f"git {words[0]} in {root}: {lines[-1] if lines else done.returncode}")
    return done.stdout.strip()


def top(folder: Path) -> Path | None:
    """The root of the working tree that `folder` lies in; None outside git."""
    try:
        return Path(git(folder, "rev-parse", "--show-toplevel")).resolve()
    except GitError:
        return None


def ignored(root: Path, path: Path) -> bool:
    """Whether git ignores `path`."""
    try:
        return bool(git(root, "check-ignore", str(path)))
    except GitError:  # its way to say no
        return False


def head(root: Path) -> str:
    """The commit checked out; empty in a repository without one."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    except GitError:
        return ""


def has_branch(root: Path, name: str) -> bool:
    """Whether there is a branch of this name."""
    return bool(git(root, "for-each-ref", f"refs/heads/{name}"))


def resolve(root: Path, ref: str) -> Snapshot:
    """The commit that `ref` names."""
    try:
        commit = git(
            root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"
        )
    except GitError as error:
        raise GitError(f"--ref {ref}: no such commit, branch or tag in {root}") from error
    return Snapshot(commit=commit, base=commit)


def snapshot(root: Path) -> Snapshot:
    """The working tree of `root` as a commit: tracked changes and untracked, unignored files.

    Made through an index of its own: the user's tree and index stay as they are.
    """
    base = head(root)
    with temporary() as folder:
        index = folder / "index"
        mine = root / git(root, "rev-parse", "--git-path", "index")
        if mine.is_file():
            shutil.copyfile(mine, index)  # with its file times: only what changed is read
        env = {"GIT_INDEX_FILE": str(index)}
        added = _count(git(root, "ls-files", "--others", "--exclude-standard", env=env))
        git(root, "add", "--all", env=env)
        tree = git(root, "write-tree", env=env)
        if base and tree == git(root, "rev-parse", f"{base}^{{tree}}"):
            return Snapshot(commit=base, base=base)
        listing = ("diff", "--cached", "--name-only", base) if base else ("ls-files",)
        differ = _count(git(root, *listing, env=env))
        parents = ("-p", base) if base else ()
        message = f"Working tree of {root.name}"
        commit = git(root, "commit-tree", tree, *parents, "-m", message, env=identity(root))
    changed, new = (differ - added, added) if base else (0, differ)
    return Snapshot(commit=commit, base=base, changed=changed, added=new)


def commit_all(root: Path, message: str, *, also: Iterable[Path] = ()) -> str:
    """Commit everything that is not ignored, and the files `also`, ignored or not; the commit.

    There is one even where nothing changed: its message says what was done.
    """
    git(root, "add", "--all")
    if forced := [str(path) for path in also]:
        git(root, "add", "--force", "--", *forced)
    words = ("--quiet", "--no-verify", "--allow-empty", "-m", message)
    git(root, "commit", *words, env=identity(root))
    return head(root)


def identity(root: Path) -> Mapping[str, str]:
    """Nothing to set where the user has an identity; a made-up one where not: containers, CI."""
    try:
        git(root, "var", "GIT_COMMITTER_IDENT")
        return {}
    except GitError:
        return NOBODY


def _count(listing: str) -> int:
    return len(listing.splitlines())
