"""Runs that fail for one cause: the newest of them stays, and a schedule waits ever longer before
it tries again.
"""

import datetime
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from stillhouse.files import storage, write_text
from stillhouse_flows.branches import repository
from stillhouse_flows.candidates import run_branches
from stillhouse_flows.git import git
from stillhouse_flows.worktree import RunWorkspace, discard, run_lock, workspaces

FIRST, LONGEST = timedelta(hours=1), timedelta(days=7)


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
    """Remove branch and workspace of earlier runs of RECIPE@VARIANT that failed for this reason."""
    repo, gone = repository(space.project), list[str]()
    for branch in run_branches(repo):
        if not branch.failed or branch.title != ref or branch.run == space.run:
            continue
        said = git(repo.top, "log", "-1", "--format=%b", f"refs/heads/runs/{branch.run}")
        # a reason may name the log, in the run's own workspace
        if _plain(said, branch.run) != _plain(reason, space.run):
            continue
        try:
            with FileLock(run_lock(space.project, branch.run), timeout=0):
                discard(space.project, branch.run)
                gone.append(branch.run)
        except Timeout:
            continue
        run_lock(space.project, branch.run).unlink(missing_ok=True)
    return gone


def _plain(reason: str, run: str) -> str:
    return " ".join(reason.replace(run, "RUN").split())
