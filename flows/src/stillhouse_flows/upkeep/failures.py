"""Runs that fail for one cause: the newest of them stays, and a schedule waits ever longer before
it tries again.
"""

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.files import storage, write_text
from stillhouse_flows.workspace.branches import Repository, repository
from stillhouse_flows.workspace.git import git
from stillhouse_flows.workspace.worktree import RunWorkspace, discard, idle, run_lock, workspaces

if TYPE_CHECKING:
    from stillhouse_flows.promotion.candidates import RunBranch

FIRST, LONGEST = timedelta(hours=1), timedelta(days=7)

NUMBER = re.compile(r"(?<![\w./-])-?\d+(\.\d+)?(?![\w/-])")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How often RECIPE@VARIANT has failed so since `since`, of the same inputs."""

    reason: str
    inputs: Mapping[str, Any]  # Any: JSON
    since: str
    times: int
    again: str  # not tried before

    def waits(self) -> bool:
        """Whether it is too early for another try."""
        return datetime.datetime.now(UTC) < datetime.datetime.fromisoformat(self.again)


def _file(project: Path, ref: str) -> Path:
    return workspaces(project) / f"{ref.replace('/', '-').replace('@', '-')}.fault"


def fault_of(project: Path, ref: str) -> Fault | None:
    """The last failure of RECIPE@VARIANT that `watch` noted; None where it has gone well since."""
    file = _file(project, ref)
    return Fault(**json.loads(file.read_text())) if file.is_file() else None


def note_fault(project: Path, ref: str, inputs: Mapping[str, Any], reason: str) -> Fault:
    """Note a failure; the same inputs wait twice as long each time."""
    before, now = fault_of(project, ref), datetime.datetime.now(UTC)
    again = before if before and before.inputs == inputs else None
    times = again.times + 1 if again else 1
    fault = Fault(
        reason=reason,
        inputs=inputs,
        since=again.since if again else now.isoformat(timespec="seconds"),
        times=times,
        again=(now + min(LONGEST, FIRST * 2 ** min(times - 1, 10))).isoformat(timespec="seconds"),
    )
    with storage(_file(project, ref)):
        write_text(_file(project, ref), json.dumps(asdict(fault), indent=1) + "\n")
    return fault


def clear_fault(project: Path, ref: str) -> None:
    """What `note_fault` noted is over."""
    _file(project, ref).unlink(missing_ok=True)


def drop_earlier(space: RunWorkspace, ref: str, reason: str) -> list[str]:
    """Remove branch and workspace of earlier runs of this recipe, whatever their settings, that
    failed for this reason.
    """
    from stillhouse_flows.promotion.candidates import run_branches  # imports torch

    repo, name = repository(space.project), ref.partition("@")[0]
    failed = [b for b in run_branches(repo) if b.failed and b.title.partition("@")[0] == name]
    # a reason may name the log, in the run's own workspace
    cause = _plain(reason, space.run, ref)
    same = [b.run for b in failed if b.run != space.run and _cause(repo, b) == cause]
    return [run for run in same if remove_run(space.project, run)]


def repeated(project: Path) -> list[str]:
    """Failed runs after which the same recipe failed for the same reason; they could go."""
    from stillhouse_flows.promotion.candidates import run_branches  # imports torch

    repo = repository(project)
    known, found = set[tuple[str, str]](), list[str]()
    for branch in run_branches(repo):  # newest first
        if not branch.failed:
            continue
        each = (branch.title.partition("@")[0], _cause(repo, branch))
        if each in known:
            found.append(branch.run)
        known.add(each)
    return found


def remove_run(project: Path, run: str) -> bool:
    """Remove a run's branch and workspace, unless it goes; whether they were removed."""
    with idle(run_lock(project, run)) as free:
        if free:
            discard(project, run)
    return free


def _cause(repo: Repository, branch: "RunBranch") -> str:
    message = git(repo.top, "log", "-1", "--format=%b", f"refs/heads/runs/{branch.run}")
    return _plain(message, branch.run, branch.title)


def _plain(reason: str, run: str, ref: str) -> str:
    """The reason without what differs from run to run: names of its own, and counts. A number in
    a file's name stays: another file is another reason.
    """
    variant = ref.partition("@")[2]
    words = reason.replace(run, "RUN").replace(ref, "REF").replace(f"/{variant}/", "/VARIANT/")
    return NUMBER.sub("N", " ".join(words.split()))
