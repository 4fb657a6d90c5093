"""What became of every run: read off the branches runs/* and `promoted`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from stillhouse.errors import UnknownName
from stillhouse_flows.branches import Repository, repository
from stillhouse_flows.git import git
from stillhouse_flows.promotion import DECISION, PROMOTED, pinned_at
from stillhouse_flows.worktree import run_lock

State = Literal["finished", "running", "unfinished"]
FORMAT = "%(refname:lstrip=3)%09%(committerdate:iso-strict)%09%(contents:subject)"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run. `score` is the first that its gate names, else the report's headline."""

    when: str
    run: str
    recipe: str  # RECIPE@VARIANT; empty before the run has settled its settings
    data: str  # the data version, 8 characters; empty where none is pinned
    state: State
    score: str
    decision: str

    def line(self) -> str:
        """The entry for a terminal."""
        facts = [self.state, f"data {self.data or 'none'}", self.score, self.decision]
        return f"{self.when[:16]}  {self.run}  {'; '.join(filter(None, facts))}"


def history(project: Path, recipe: str = "", *, limit: int = 0) -> list[Entry]:
    """Runs, newest first: of RECIPE[@VARIANT] only, and at most `limit` where they are given."""
    repo = repository(project)
    found: list[Entry] = []
    names: set[str] = set()
    promoted = promoted_runs(repo)
    for run, when, title in _branches(repo):
        names |= {title, title.partition("@")[0]} - {""}
        if recipe in ("", title, title.partition("@")[0]) and (not limit or len(found) < limit):
            found.append(_entry(repo, run, when, title, promoted))
    if recipe and recipe not in names:
        raise UnknownName("recipe", recipe, names, where="runs")
    return found


def _branches(repo: Repository) -> Iterator[tuple[str, str, str]]:
    """Run, time of its last commit, and the RECIPE@VARIANT that its subject ends with."""
    words = ("--sort=-committerdate", f"--format={FORMAT}", "refs/heads/runs")
    for line in git(repo.top, "for-each-ref", *words).splitlines():
        run, when, subject = line.split("\t", 2)
        last = subject.rpartition(" ")[2]
        yield run.removeprefix("runs/"), when, last if "@" in last else ""


def promoted_runs(repo: Repository) -> list[str]:
    """Runs whose student was promoted once, the newest first."""
    if not (tip := repo.tip(PROMOTED)):
        return []
    words = ("--first-parent", "--format=%(trailers:key=Run,valueonly,separator=)", tip)
    return [run for run in git(repo.top, "log", *words).splitlines() if run]


def decisions(repo: Repository, title: str) -> Iterator[Mapping[str, Any]]:  # Any: JSON
    """What was decided on runs of RECIPE@VARIANT, newest first."""
    for run, _, recipe in _branches(repo):
        if recipe == title and (record := _decision(repo, run, title)):
            yield record


def _decision(repo: Repository, run: str, title: str) -> Mapping[str, Any] | None:  # Any: JSON
    path = f"runs/{title.replace('@', '/')}/{DECISION}"
    text = repo.read(f"refs/heads/runs/{run}", path)
    return None if text is None else json.loads(text)


def _entry(repo: Repository, run: str, when: str, title: str, promoted: list[str]) -> Entry:
    branch = f"refs/heads/runs/{run}"
    path = f"runs/{title.replace('@', '/')}/report/report.json"
    report = repo.read(branch, path) if title else None
    record = _decision(repo, run, title) if report else None
    pinned = pinned_at(repo, branch)
    return Entry(
        when=when,
        run=run,
        recipe=title,
        data=pinned.md5[:8] if pinned else "",
        state="finished" if report else "running" if _running(repo.project, run) else "unfinished",
        score=_score(record) if record else _headline(report) if report else "",
        decision=_words(run, record, promoted) if report else "",
    )


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


def _headline(report: str) -> str:
    return str(json.loads(report)["headline"]["sentence"])


def _words(run: str, record: Mapping[str, Any] | None, promoted: list[str]) -> str:  # Any: JSON
    # a run that was killed between its promotion and the note of it is promoted all the same
    if run in promoted:
        forced = " by force" if record and record["forced"] else ""
        return f"promoted{forced}"
    return f"refused: {'; '.join(record['reasons'])}" if record else "not judged"
