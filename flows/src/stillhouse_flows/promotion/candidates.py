"""Runs as their branches record them: which there are, which are finished, what was decided."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillhouse.errors import MissingData, UnknownName
from stillhouse.report.document import Document, parse
from stillhouse_flows.data.pinned import PIN, Pin, pin_from
from stillhouse_flows.workspace.branches import Repository
from stillhouse_flows.workspace.git import git

DECISION = "decision.json"
FINISHED = ("Report of ", "Decision on ")  # subjects of a finished run's last commit
FAILED = "Failure of "  # and of one that failed; the reason is the commit's body


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A finished run, as its branch has it."""

    run: str
    commit: str
    report: Document

    @property
    def branch(self) -> str:
        return f"runs/{self.run}"

    @property
    def name(self) -> str:
        return self.report.recipe

    @property
    def runs(self) -> str:
        return f"runs/{self.name}/{self.report.variant}"


@dataclass(frozen=True, kw_only=True)
class RunBranch:
    """A branch runs/*, as its last commit records it."""

    run: str
    when: str  # of that commit
    title: str  # RECIPE@VARIANT; empty before the run has settled its settings
    finished: bool
    failed: bool

    def folder(self) -> str:
        """runs/<domain>/<recipe>/<variant>."""
        return f"runs/{self.title.replace('@', '/')}"


def run_branches(repo: Repository) -> list[RunBranch]:
    """Every run that has a branch, newest first."""
    shown = "--format=%(refname:lstrip=3)%09%(committerdate:iso-strict)%09%(contents:subject)"
    listing = git(repo.top, "for-each-ref", "--sort=-committerdate", shown, "refs/heads/runs")
    found: list[RunBranch] = []
    for line in listing.splitlines():
        run, when, subject = line.split("\t", 2)
        word = subject.rpartition(" ")[2]
        # what its tree holds does not decide: the user may have merged an earlier run
        finished, failed = subject.startswith(FINISHED), subject.startswith(FAILED)
        title = word if "@" in word else ""
        each = RunBranch(run=run, when=when, title=title, finished=finished, failed=failed)
        found.append(each)
    return found


def candidate(repo: Repository, run: str) -> Candidate:
    """A finished run by name or branch; raises UnknownName, MissingData where it has no report."""
    branches = {each.run: each for each in run_branches(repo)}
    found = branches.get(run.removeprefix("runs/"))
    if found is None:
        raise UnknownName("run", run, branches)
    commit = repo.tip(f"runs/{found.run}")
    path = f"{found.folder()}/report/report.json"
    text = repo.read(commit, path) if found.finished else None
    if text is None:
        raise MissingData(
            f"run {found.run} is not finished: its branch runs/{found.run} has no report"
        )
    report = parse(text, where=f"runs/{found.run}:{path}")
    return Candidate(run=found.run, commit=commit, report=report)


def decision_on(repo: Repository, branch: RunBranch) -> Mapping[str, Any] | None:  # Any: JSON
    """What was decided on a run; None where it was not judged."""
    text = repo.read(f"refs/heads/runs/{branch.run}", f"{branch.folder()}/{DECISION}")
    record = json.loads(text) if branch.title and text else None
    return record if record and record["run"] == branch.run else None


def pinned_at(repo: Repository, commit: str) -> Pin | None:
    """The data version that a commit pins."""
    text = repo.read(commit, PIN)
    return None if text is None else pin_from(text, where=f"{commit[:12]}:{PIN}")
