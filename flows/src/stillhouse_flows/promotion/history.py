"""What became of every run: read off the branches runs/* and `promoted`."""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from stillhouse.errors import UnknownName
from stillhouse.report.document import parse
from stillhouse_flows.promotion.candidates import RunBranch, decision_on, pinned_at, run_branches
from stillhouse_flows.promotion.gate import rows_of_report
from stillhouse_flows.promotion.promoted import PROMOTED
from stillhouse_flows.workspace.branches import Repository, repository
from stillhouse_flows.workspace.git import git
from stillhouse_flows.workspace.worktree import run_lock, workspaces

State = Literal["finished", "running", "failed", "unfinished"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run. `score` is the first that its gate names, else the report's main one, of the student
    that the recipe exports; of a run that failed, the reason. `page` is its report.html where its
    workspace is still here.
    """

    when: str
    run: str
    recipe: str  # RECIPE@VARIANT; empty before the run has settled its settings
    data: str  # the data version, 8 characters; empty where none is pinned
    state: State
    score: str
    decision: str
    page: str = ""

    def line(self) -> str:
        """The entry for a terminal."""
        facts = [self.recipe, f"data {self.data or 'none'}", self.state, self.score, self.decision]
        when = self.when[:16].replace("T", " ")
        text = f"{when}  {self.run}  {'; '.join(filter(None, facts))}"
        # on a line of its own, whole however wide the terminal is
        return f"{text}\n    {self.page}" if self.page else text


def history(project: Path, recipe: str = "", *, limit: int = 0) -> list[Entry]:
    """Runs, newest first: of RECIPE[@VARIANT] only, and at most `limit` where they are given."""
    repo = repository(project)
    branches, promoted = run_branches(repo), promoted_runs(repo)
    names = {name for each in branches for name in (each.title, each.title.partition("@")[0])}
    if recipe and recipe not in names:
        raise UnknownName("recipe", recipe, names - {""}, where="runs")
    chosen = [b for b in branches if recipe in ("", b.title, b.title.partition("@")[0])]
    return [_entry(repo, branch, promoted) for branch in chosen[: limit or None]]


def promoted_runs(repo: Repository) -> list[str]:
    """Runs whose student was promoted once, here or where this was fetched from; newest first."""
    words = ("--format=%(objectname)", f"refs/heads/{PROMOTED}", f"refs/remotes/*/{PROMOTED}")
    if not (tips := git(repo.top, "for-each-ref", *words).splitlines()):
        return []
    words = ("--first-parent", "--format=%(trailers:key=Run,valueonly,separator=)", *tips)
    return [run for run in git(repo.top, "log", *words).splitlines() if run]


def decisions(repo: Repository, title: str) -> Iterator[Mapping[str, Any]]:  # Any: JSON
    """What was decided on runs of RECIPE@VARIANT, newest first."""
    for branch in run_branches(repo):
        if branch.title == title and (record := decision_on(repo, branch)):
            yield record


def _entry(repo: Repository, branch: RunBranch, promoted: Sequence[str]) -> Entry:
    where = f"refs/heads/runs/{branch.run}"
    path = f"{branch.folder()}/report/report.json"
    report = repo.read(where, path) if branch.finished else None
    record = decision_on(repo, branch) if report else None
    pinned = pinned_at(repo, where)
    return Entry(
        when=branch.when if branch.title else _begun(repo, branch),
        run=branch.run,
        recipe=branch.title,
        data=pinned.md5[:8] if pinned else "",
        state=_state(repo, branch),
        score=_outcome(repo, branch, record, report),
        decision=_words(branch.run, record, promoted) if report else "",
        page=_page(repo, branch) if report else "",
    )


def _page(repo: Repository, branch: RunBranch) -> str:
    root = workspaces(repo.project) / branch.run / repo.prefix
    page = root / branch.folder() / "report" / "report.html"
    return str(page) if page.is_file() else ""


def _begun(repo: Repository, branch: RunBranch) -> str:
    """A branch without a commit of its own has the date of the user's: its workspace's counts."""
    record = run_lock(repo.project, branch.run).with_suffix(".json")
    if not record.is_file():
        return branch.when
    began = datetime.datetime.fromtimestamp(record.stat().st_mtime).astimezone()
    return began.isoformat(timespec="seconds")


def _state(repo: Repository, branch: RunBranch) -> State:
    if branch.finished:
        return "finished"
    if _running(repo.project, branch.run):
        return "running"
    return "failed" if branch.failed else "unfinished"


def _outcome(
    repo: Repository,
    branch: RunBranch,
    record: Mapping[str, Any] | None,  # Any: JSON
    report: str | None,
) -> str:
    if record:
        return _score(record)
    if report:
        return _main_score(report, branch)
    if branch.failed:
        reason = git(repo.top, "log", "-1", "--format=%b", f"refs/heads/runs/{branch.run}")
        return " ".join(reason.split())
    return ""


def _running(project: Path, run: str) -> bool:
    """Whether a process of this machine holds the run's lock."""
    lock = run_lock(project, run)
    if not lock.is_file():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _score(record: Mapping[str, Any]) -> str:  # Any: JSON
    gate: Mapping[str, Any] = record["gate"] or {}
    named = [*gate.get("minimum", {}), *gate.get("not_worse", []), *gate.get("maximum", {})]
    name = next(iter([*named, *record["scores"]]), "")
    return f"{record['row']}: {name} {record['scores'][name]:.6g}" if name else str(record["row"])


def _main_score(report: str, branch: RunBranch) -> str:
    document = parse(report, where=f"runs/{branch.run}")
    exported = rows_of_report(document)
    rows = filter(None, map(document.row, (document.method, *exported)))
    row = next(rows, document.rows[-1] if document.rows else None)
    score = row.scores.get(document.primary or "") if row else None
    if row is None or score is None:
        return document.headline.text
    return f"{row.name}: {document.primary} {score.mean:.6g}"


def _words(run: str, record: Mapping[str, Any] | None, promoted: Sequence[str]) -> str:  # Any: JSON
    # a run that was killed between its promotion and the note of it is promoted all the same; and
    # of one whose branch was fetched alone, the note says it
    if run in promoted or (record and record["promoted"]):
        forced = " by force" if record and record["forced"] else ""
        return f"promoted{forced}"
    return f"refused: {'; '.join(record['reasons'])}" if record else "not judged"
