"""Commits on branches that nobody works on, made through an index of their own, and what stands on
them: neither the user's tree nor their index is touched.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import StillhouseError
from stillhouse.leftovers import temporary
from stillhouse_flows.workspace.git import GitError, git, identity, ignored, top

ABSENT = "0" * 40


@dataclass(frozen=True, kw_only=True)
class Repository:
    """The git repository of a project. Paths given to it are relative to the project."""

    project: Path
    top: Path
    prefix: str  # of the project inside it: "" or "folder/"

    @property
    def common(self) -> Path:
        """The .git folder that every working tree shares."""
        return (self.top / git(self.top, "rev-parse", "--git-common-dir")).resolve()

    def tip(self, branch: str) -> str:
        """The newest commit of a branch; empty where there is no such branch."""
        try:
            return git(self.top, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}")
        except GitError:
            return ""

    def read(self, revision: str, path: str) -> str | None:
        """The text of a file at a commit; None where it is missing."""
        try:
            return git(self.top, "cat-file", "blob", f"{revision}:{self.prefix}{path}")
        except GitError:
            return None

    def names(self, revision: str, folder: str) -> list[str]:
        """Files below a folder at a commit."""
        words = ("-r", "--name-only", "-z", revision, "--", f"{self.prefix}{folder}/")
        listing = git(self.top, "ls-tree", *words).split("\0")
        return [name.removeprefix(self.prefix) for name in listing if name]

    def holds(self, revision: str, ancestor: str) -> bool:
        """Whether `ancestor` is `revision`, or a commit before it."""
        try:
            git(self.top, "merge-base", "--is-ancestor", ancestor, revision)
        except GitError:
            return False
        return True

    def worktree_of(self, branch: str) -> Path | None:
        """The working tree that has a branch checked out."""
        for entry in git(self.top, "worktree", "list", "--porcelain").split("\n\n"):
            lines = entry.splitlines()
            if f"branch refs/heads/{branch}" in lines:
                return Path(lines[0].removeprefix("worktree "))
        return None

    def base(self, commit: str) -> str:
        """The newest commit before `commit` that is the user's own: on one of their branches.

        Raises StillhouseError where there is none.
        """
        theirs = ["--exclude=runs/*", "--exclude=promoted", "--branches"]
        theirs += ["--exclude=*/runs/*", "--exclude=*/promoted", "--remotes"]
        words = ["rev-list", "--first-parent", commit, "--not", *theirs]
        ours = git(self.top, *words).splitlines()
        if not ours:
            return commit
        try:
            return git(self.top, "rev-parse", "--verify", "--quiet", f"{ours[-1]}^")
        except GitError as error:
            raise StillhouseError(
                f"{self.project}: nothing was committed before {commit[:12]}, "
                "so there is nothing to promote onto; commit your files and run again"
            ) from error


def repository(project: Path) -> Repository:
    """The repository of a project; raises StillhouseError outside git."""
    tree = top(project)
    if tree is None or (tree != project.resolve() and ignored(tree, project)):
        raise StillhouseError(
            f"{project} is not in a git repository, and promoted students live on a branch; "
            "run: git init, and commit your files"
        )
    prefix = git(project, "rev-parse", "--show-prefix")
    return Repository(project=project, top=tree, prefix=prefix)


class Staging:
    """A tree in the making."""

    def __init__(self, repo: Repository, env: Mapping[str, str]) -> None:
        self.repo, self.env = repo, env

    def start(self, revision: str) -> None:
        """Take over the whole tree of a commit."""
        git(self.repo.top, "read-tree", revision, env=self.env)

    def remove(self, folder: str) -> None:
        """Take a folder out."""
        path = f"{self.repo.prefix}{folder}"
        words = ("-r", "-q", "-f", "--cached", "--ignore-unmatch", "--", path)
        git(self.repo.top, "rm", *words, env=self.env)

    def take(self, folder: str, revision: str) -> None:
        """Have a folder as it is at a commit."""
        self.remove(folder)
        path = f"{self.repo.prefix}{folder}"
        git(self.repo.top, "read-tree", f"--prefix={path}/", f"{revision}:{path}", env=self.env)

    def put(self, path: str, text: str) -> None:
        """Write a text file."""
        blob = git(self.repo.top, "hash-object", "-w", "--stdin", text=text)
        entry = f"100644,{blob},{self.repo.prefix}{path}"
        git(self.repo.top, "update-index", "--add", "--cacheinfo", entry, env=self.env)

    def commit(self, message: str, *, parents: Iterable[str]) -> str:
        """The tree as a commit that no branch has yet."""
        tree = git(self.repo.top, "write-tree", env=self.env)
        above = [word for parent in parents for word in ("-p", parent)]
        words = ("commit-tree", tree, *above, "-F", "-")
        return git(self.repo.top, *words, env=identity(self.repo.top), text=message)


@contextmanager
def staging(repo: Repository) -> Generator[Staging]:
    """An empty tree, filled through an index that goes with the block."""
    with temporary() as folder:
        yield Staging(repo, {"GIT_INDEX_FILE": str(folder / "index")})


def move(
    repo: Repository, branch: str, *, new: str, old: str, tags: Mapping[str, str] | None = None
) -> None:
    """Have a branch at `new`, and `tags` (name -> commit) set: all at once or not at all.

    Raises GitError where the branch is not at `old` any more.
    """
    lines = [f"update refs/heads/{branch} {new} {old or ABSENT}"]
    lines += [f"update refs/tags/{name} {commit}" for name, commit in (tags or {}).items()]
    git(repo.top, "update-ref", "--stdin", text="\n".join(lines) + "\n")
