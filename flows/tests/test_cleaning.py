"""What old runs have left goes; promoted runs and those that go stay."""

import os
import time
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from stillhouse.errors import StillhouseError
from stillhouse_flows.upkeep.cleaning import clean, collect, survey
from stillhouse_flows.upkeep.failures import (
    FIRST,
    LONGEST,
    clear_fault,
    drop_earlier,
    fault_of,
    note_fault,
)
from stillhouse_flows.workspace.git import git, identity
from stillhouse_flows.workspace.worktree import RunWorkspace, keep_mark, prune, run_lock, workspace

if TYPE_CHECKING:
    from conftest import Project


def ran(project: "Project", message: str = "Report of toy/count@tiny") -> RunWorkspace:
    """The workspace of a run that has ended."""
    with workspace(project.root, "toy") as space:
        space.commit(message)
    return space


def age(space: RunWorkspace, seconds: float) -> None:
    then = time.time() - seconds
    for path in (*space.folder.rglob("*"), space.folder):
        os.utime(path, (then, then), follow_symlinks=False)


def branches(project: "Project") -> set[str]:
    return set(project.git("branch", "--list", "runs/*", "--format=%(refname:short)").split())


def test_pages_are_left_out_of_a_workspace_but_not_of_its_commits(toy: "Project") -> None:
    toy.write({"docs/results/big.txt": "x" * 1000, "src/docs/kept.txt": "kept\n"})
    toy.commit()
    (toy / "docs/new.txt").write_text("not committed yet\n")
    with workspace(toy.root, "toy") as space:
        assert not (space.root / "docs").exists()
        assert (space.root / "src/docs/kept.txt").is_file()
        assert "docs" not in toy.git("status", "--porcelain", at=space.root)
        (space.root / "result").write_text("1\n")
        space.commit("result")
    names = toy.git("ls-tree", "-r", "--name-only", space.branch).splitlines()
    assert {"docs/results/big.txt", "docs/new.txt", "result"} <= set(names)


def test_old_workspaces_go_and_promoted_and_running_ones_stay(toy: "Project") -> None:
    old, new, promoted, running, tagged = (ran(toy) for _ in range(5))
    for space in (old, promoted, running, tagged):
        age(space, 600)
    keep_mark(toy.root, promoted.run).touch()
    toy.git("tag", f"promoted/{tagged.run}", tagged.branch)
    with FileLock(run_lock(toy.root, running.run)):
        assert [left.run for left in clean(toy.root, seconds=300, branches=False, dry=True)] == [
            old.run
        ]
        assert old.folder.is_dir()
        (gone,) = clean(toy.root, seconds=300, branches=False, dry=False)
        assert (gone.run, gone.branch) == (old.run, True)
        assert gone.size > 0
    assert not old.folder.exists()
    assert all(space.folder.is_dir() for space in (new, promoted, running, tagged))
    assert old.branch in branches(toy)
    assert str(old.folder) not in toy.git("worktree", "list")
    prune(old.folder.parent, keep=0)
    assert promoted.folder.is_dir()


def test_branches_go_when_asked(toy: "Project") -> None:
    old = ran(toy)
    new = ran(toy)
    age(old, 600)
    list(clean(toy.root, seconds=300, branches=True, dry=False))
    assert branches(toy) == {new.branch}
    assert [left.run for left in survey(toy.root)] == [new.run]
    assert not run_lock(toy.root, old.run).with_suffix(".json").exists()


def test_gc_keeps_what_a_workspace_has_not_committed(toy: "Project") -> None:
    from dvc.repo import Repo

    cache = toy / ".dvc/cache/files/md5"
    kept = {p for p in cache.rglob("*") if p.is_file()}
    (toy / "spare.bin").write_text("spare\n")
    with Repo(str(toy.root)) as repo:
        repo.add(str(toy / "spare.bin"))
    (toy / "spare.bin.dvc").unlink()
    with workspace(toy.root, "toy") as space:
        (space.root / "mine.bin").write_text("not committed\n")
        with Repo(str(space.root)) as repo:
            repo.add(str(space.root / "mine.bin"))
        with pytest.raises(StillhouseError, match=rf"run {space.run} goes on; wait until"):
            collect(toy.root)
    assert collect(toy.root) == len("spare\n")
    left = {p for p in cache.rglob("*") if p.is_file()}
    assert kept < left
    assert [p.read_text() for p in left - kept] == ["not committed\n"]


TRUNCATED = "stage 'numbers': a.png is truncated"


def failed(project: "Project", reason: str, variant: str = "tiny") -> RunWorkspace:
    return ran(project, f"Failure of toy/count@{variant}\n\n{reason}\n")


def test_of_runs_that_fail_for_one_reason_the_newest_stays(toy: "Project") -> None:
    other = failed(toy, "stage 'numbers': img_1.png is truncated")
    first, second = (failed(toy, TRUNCATED) for _ in range(2))
    last = failed(toy, TRUNCATED)
    assert set(drop_earlier(last, "toy/count@tiny", TRUNCATED)) == {first.run, second.run}
    assert branches(toy) == {other.branch, last.branch}
    assert not first.folder.exists()
    assert not run_lock(toy.root, first.run).with_suffix(".json").exists()
    # another file, another recipe
    assert drop_earlier(last, "toy/count@tiny", "stage 'numbers': img_2.png is truncated") == []
    assert drop_earlier(last, "toy/learn@tiny", "stage 'numbers': img_1.png is truncated") == []
    assert drop_earlier(last, "toy/count@small", "stage 'numbers': img_1.png is truncated") == [
        other.run
    ]


def test_variants_that_fail_for_one_reason_leave_one_and_what_goes_stays(toy: "Project") -> None:
    """The reason names the run's log, its variant and a count."""

    def told(run: str, variant: str, step: int) -> str:
        log = f"/x/{run}/runs/toy/count/{variant}/double.log"
        return f"toy/count@{variant}: not a number at step {step}; its log is {log}"

    finished = ran(toy)
    spaces = dict[str, RunWorkspace]()
    for step, variant in enumerate(("tiny-aaaaaaaa", "tiny-bbbbbbbb", "tiny-cccccccc", "tiny")):
        with workspace(toy.root, "toy") as space:
            text = told(space.run, variant, step)
            space.commit(f"Failure of toy/count@{variant}\n\n{text}\n")
        spaces[variant] = space
    with FileLock(run_lock(toy.root, spaces["tiny-aaaaaaaa"].run)):
        last = spaces["tiny"]
        gone = drop_earlier(last, "toy/count@tiny", told(last.run, "tiny", 9))
    assert set(gone) == {spaces["tiny-bbbbbbbb"].run, spaces["tiny-cccccccc"].run}
    kept = {finished, last, spaces["tiny-aaaaaaaa"]}
    assert branches(toy) == {space.branch for space in kept}
    assert all(space.folder.is_dir() for space in kept)


def test_clean_takes_what_earlier_versions_left_of_failed_runs(toy: "Project") -> None:
    finished = ran(toy)
    earlier = failed(toy, TRUNCATED, "tiny-aaaaaaaa")
    age(earlier, 600)
    last = failed(toy, TRUNCATED)
    age(last, 300)
    when = {**identity(toy.root), "GIT_COMMITTER_DATE": "2020-01-01T00:00:00"}
    earlier_tip = toy.git("rev-parse", earlier.branch)
    again = git(toy.root, "commit-tree", f"{earlier_tip}^{{tree}}", "-p", earlier_tip, "-m",
                f"Failure of toy/count@tiny-aaaaaaaa\n\n{TRUNCATED}", env=when)  # fmt: skip
    toy.git("update-ref", f"refs/heads/{earlier.branch}", again)
    (gone,) = clean(toy.root, seconds=1e6, branches=False, dry=False)
    assert (gone.run, gone.repeated) == (earlier.run, True)
    assert branches(toy) == {finished.branch, last.branch}
    assert not earlier.folder.exists()
    assert list(clean(toy.root, seconds=1e6, branches=False, dry=False)) == []


def test_a_fault_that_repeats_waits_twice_as_long_each_time(toy: "Project") -> None:
    from datetime import datetime

    def wait(inputs: dict[str, str]) -> float:
        before = time.time()
        fault = note_fault(toy.root, "toy/count@tiny", inputs, "bad")
        assert fault == fault_of(toy.root, "toy/count@tiny")
        assert fault.waits()
        return datetime.fromisoformat(fault.again).timestamp() - before

    hours = FIRST.total_seconds()
    for factor in (1, 2, 4, 8):
        assert wait({"data": "one"}) == pytest.approx(factor * hours, abs=5)
    assert wait({"data": "other"}) == pytest.approx(hours, abs=5)
    for _ in range(12):
        longest = wait({"data": "other"})
    assert longest == pytest.approx(LONGEST.total_seconds(), abs=5)
    clear_fault(toy.root, "toy/count@tiny")
    assert fault_of(toy.root, "toy/count@tiny") is None


def test_watch_does_not_try_again_what_is_known_to_fail(toy: "Project") -> None:
    from dataclasses import asdict, replace

    from stillhouse_flows.promotion.gate import Gate
    from stillhouse_flows.promotion.inputs import Inputs
    from stillhouse_flows.watch import Seen, wait_out

    inputs = Inputs(variant="tiny", settings={}, code="c", data="v1", outside={"data:a": "digest"})
    seen = Seen(recipe="toy/count", ref="toy/count@tiny", inputs=inputs, gate=Gate())
    wait_out(toy.root, seen)
    note_fault(toy.root, seen.ref, asdict(inputs), "stage 'numbers': a.png is truncated")
    told = (
        r"^toy/count@tiny has failed 1 times since .*: stage 'numbers': a\.png is truncated; not "
        r"tried again before .*, unless what it reads changes, or with --force$"
    )
    with pytest.raises(StillhouseError, match=told):
        wait_out(toy.root, seen)
    for other in (
        {"code": "d"},
        {"settings": {"seeds": 2}},
        {"outside": {"data:a": "new"}, "data": "v2"},
    ):
        wait_out(toy.root, replace(seen, inputs=replace(inputs, **other)))


def test_a_watch_that_starts_late_drops_what_came_due_meanwhile() -> None:
    from stillhouse_flows.flow import distill
    from stillhouse_flows.upkeep.overdue import drop_overdue
    from stillhouse_flows.watch import watch

    assert drop_overdue in watch.on_running_hooks
    assert drop_overdue in distill.on_running_hooks
