"""Promotion of real runs: the branch, DVC's files, what a kill leaves, and what git merges."""

import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from stillhouse.digest import path_digest
from stillhouse.errors import MissingData, StillhouseError, UnknownName
from stillhouse_flows.data.pinned import RemoteLost
from stillhouse_flows.promotion import promoted, student
from stillhouse_flows.promotion.gate import Gate
from stillhouse_flows.promotion.history import history
from stillhouse_flows.promotion.promoted import judge, judge_now
from stillhouse_flows.workspace.branches import Repository
from stillhouse_flows.workspace.worktree import workspace

if TYPE_CHECKING:
    from conftest import Learnt, Project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LOW = Gate(minimum={"accuracy": 0.5})
HIGH = Gate(minimum={"accuracy": 0.7})
NOT_WORSE = Gate(not_worse=("accuracy",))
MODELS = "models/toy/learn"


def record(project: "Project", name: str = "promotion.json") -> dict[str, Any]:
    return json.loads(project.git("show", f"promoted:{MODELS}/{name}"))


def test_a_student_that_passes_is_on_the_branch_with_all_that_tells_of_it(learnt: "Learnt") -> None:
    project, before = learnt.project, learnt.project.state()
    judgement = judge(project.root, learnt.good, HIGH)
    assert judgement.promoted
    assert project.state() == before
    names = project.git("ls-tree", "-r", "--name-only", "promoted", "--", "models").splitlines()
    assert names == [
        f"{MODELS}/{name}"
        for name in (
            ".gitignore",
            "README.md",
            "promotion.json",
            "report.json",
            "report.md",
            "student.dvc",
        )
    ]
    # apart from models/, the user's own commit: nothing that the run wrote
    assert project.git("diff", "--stat", "main", "promoted", "--", ".", ":!models") == ""
    assert project.git("log", "--format=%s", "promoted").splitlines() == [
        "Promote toy/learn@tiny",
        "toy",
    ]
    said = record(project)
    assert said["run"] == learnt.good
    assert said["row"] == "student"
    assert said["scores"]["accuracy"] == pytest.approx(0.8)
    assert said["commit"] == project.git("rev-parse", f"promoted/{learnt.good}")
    assert said["inputs"]["data"].endswith(".dir")
    assert list(said["inputs"]["outside"]) == ["data:a/numbers.txt"]
    card = project.git("show", f"promoted:{MODELS}/README.md")
    assert card.startswith("# A toy student")
    assert "| accuracy | 0.8 |" in card
    branch = f"runs/{learnt.good}"
    kept = json.loads(project.git("show", f"{branch}:runs/toy/learn/tiny/decision.json"))
    assert kept == said
    assert project.git("log", "-1", "--format=%s", branch) == "Decision on toy/learn@tiny"


def test_the_user_gets_it_by_merge_and_checkout_or_by_dvc_get(
    learnt: "Learnt", tmp_path: Path
) -> None:
    project = learnt.project
    judge(project.root, learnt.good, HIGH)
    digest = path_digest_of_export(learnt)
    dvc(
        project.root,
        "get",
        ".",
        f"{MODELS}/student",
        "--rev",
        "promoted",
        "-o",
        str(tmp_path / "got"),
    )
    assert path_digest(tmp_path / "got") == digest
    project.git("merge", "--quiet", "promoted")
    dvc(project.root, "checkout", f"{MODELS}/student.dvc")
    assert path_digest(project / f"{MODELS}/student") == digest
    assert project.git("status", "--porcelain") == ""


def path_digest_of_export(learnt: "Learnt") -> str:
    report = json.loads(
        learnt.project.git("show", f"runs/{learnt.good}:runs/toy/learn/tiny/report/report.json")
    )
    (export,) = [stage for stage in report["stages"] if stage["name"] == "export"]
    return export["outputs"]["model"]["digest"]


def dvc(root: Path, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_with_push_another_machine_gets_the_student(learnt: "Learnt", tmp_path: Path) -> None:
    project, remote = learnt.project, tmp_path / "remote"
    remote.mkdir()
    dvc(project.root, "remote", "add", "--local", "-d", "store", str(remote))
    judge(project.root, learnt.good, HIGH, push=True)
    clone = tmp_path / "clone"
    project.git("clone", "--quiet", "--branch", "promoted", str(project.root), str(clone))
    dvc(clone, "remote", "add", "--local", "-d", "store", str(remote))
    dvc(clone, "pull", f"{MODELS}/student.dvc")
    assert path_digest(clone / f"{MODELS}/student") == path_digest_of_export(learnt)


def test_a_remote_that_is_not_there_leaves_the_promoted_student(
    learnt: "Learnt", tmp_path: Path
) -> None:
    project = learnt.project
    dvc(project.root, "remote", "add", "--local", "-d", "store", str(tmp_path / "unmounted"))
    judge(project.root, learnt.good, LOW)
    tip = project.git("rev-parse", "promoted")
    with pytest.raises(RemoteLost, match="not found; mount it"):
        judge(project.root, learnt.worse, LOW, push=True)
    assert project.git("rev-parse", "promoted") == tip


def test_a_refused_student_leaves_the_promoted_one(learnt: "Learnt") -> None:
    project = learnt.project
    judge(project.root, learnt.good, HIGH)
    tip = project.git("rev-parse", "promoted")
    judgement = judge(project.root, learnt.worse, NOT_WORSE)
    assert not judgement.promoted
    assert project.git("rev-parse", "promoted") == tip
    assert judgement.decision.reasons == (
        f"accuracy 0.6, worse than the mean 0.8 of {learnt.good}, which is promoted",
    )
    entries = {entry.run: entry for entry in history(project.root)}
    assert entries[learnt.good].decision == "promoted"
    assert entries[learnt.worse].decision == f"refused: {judgement.decision.reasons[0]}"
    assert entries[learnt.worse].score == "student: accuracy 0.6"


def test_force_promotes_what_the_gate_refuses_and_says_so(learnt: "Learnt") -> None:
    project = learnt.project
    judge(project.root, learnt.good, HIGH)
    judgement = judge(project.root, learnt.worse, HIGH, force=True)
    assert (
        judgement.sentence()
        == f"{learnt.worse} promoted by force, row 'student': accuracy 0.6, at least 0.7 asked"
    )
    assert record(project)["run"] == learnt.worse
    assert record(project)["forced"] is True
    assert record(project)["before"] == learnt.good
    (entry,) = [each for each in history(project.root) if each.run == learnt.worse]
    assert entry.decision == "promoted by force"
    # and back
    assert judge(project.root, learnt.good, None, force=True).promoted
    assert record(project)["run"] == learnt.good


@pytest.mark.parametrize("step", ["models_files", "staging", "move"])
def test_a_kill_before_the_branch_moves_leaves_the_old_student(
    learnt: "Learnt", step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = learnt.project
    judge(project.root, learnt.good, LOW)
    tip, pointer = (
        project.git("rev-parse", "promoted"),
        project.git("show", f"promoted:{MODELS}/student.dvc"),
    )

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promoted, step, killed)
        with pytest.raises(KeyboardInterrupt):
            judge(project.root, learnt.worse, LOW)
    assert project.git("rev-parse", "promoted") == tip
    assert judge(project.root, learnt.worse, LOW).promoted
    assert project.git("show", f"promoted:{MODELS}/student.dvc") != pointer
    assert record(project)["before"] == learnt.good
    assert project.git("rev-parse", "promoted^") == tip


def test_a_kill_after_the_branch_moved_is_a_promotion(
    learnt: "Learnt", monkeypatch: pytest.MonkeyPatch
) -> None:
    project = learnt.project

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(promoted, "_note", killed)
        with pytest.raises(KeyboardInterrupt):
            judge(project.root, learnt.good, HIGH)
    (entry,) = [each for each in history(project.root) if each.run == learnt.good]
    assert entry.decision == "promoted"
    tip = project.git("rev-parse", "promoted")
    assert judge(project.root, learnt.good, HIGH).promoted
    assert project.git("rev-parse", "promoted") == tip


def test_two_that_promote_at_once_do_not_lose_one(
    learnt: "Learnt", monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock keeps them apart on one machine; without it the branch moves only from where it was."""
    project = learnt.project
    judge(project.root, learnt.good, LOW)
    tip = project.git("rev-parse", "promoted")
    track = student._track

    def overtaken(folder: Path, repo: Repository, *, push: bool) -> None:
        track(folder, repo, push=push)
        project.git("update-ref", "refs/heads/promoted", "main")

    with monkeypatch.context() as patch:
        patch.setattr(student, "_track", overtaken)
        with pytest.raises(StillhouseError, match="but expected"):
            judge(project.root, learnt.worse, LOW)
    assert project.git("rev-parse", "promoted") != tip
    assert learnt.worse not in project.git("tag")


def test_merging_brings_models_only_and_never_takes_newer_code_back(learnt: "Learnt") -> None:
    project = learnt.project
    judge(project.root, learnt.good, LOW)
    project.git("merge", "--quiet", "promoted")
    project.write({"code.py": "newer\n", "models/own/notes.txt": "mine\n"})
    project.commit()
    # a run of the older commit
    judge(project.root, learnt.worse, LOW)
    project.git("merge", "--quiet", "promoted", "-m", "merge")
    assert (project / "code.py").read_text() == "newer\n"
    assert (project / "models/own/notes.txt").is_file()
    assert json.loads((project / f"{MODELS}/promotion.json").read_text())["run"] == learnt.worse


def test_what_cannot_be_promoted_is_one_clear_line(learnt: "Learnt") -> None:
    project = learnt.project
    with pytest.raises(UnknownName, match=f"Did you mean '{learnt.good}'"):
        judge(project.root, f"{learnt.good}x", LOW)
    with pytest.raises(StillhouseError, match="toy/learn has no gate in params.yaml"):
        judge_now(project.root, learnt.good)
    project.git("branch", "runs/toy-learn-tiny-0", "main")
    with pytest.raises(MissingData, match="run toy-learn-tiny-0 is not finished"):
        judge(project.root, "toy-learn-tiny-0", LOW)
    judge(project.root, learnt.good, LOW)
    project.git("checkout", "--quiet", "promoted")
    with pytest.raises(StillhouseError, match="branch promoted is checked out"):
        judge(project.root, learnt.worse, LOW)


def test_runs_that_the_user_merged_are_not_taken_for_those_of_a_later_run(learnt: "Learnt") -> None:
    project = learnt.project
    judge(project.root, learnt.good, LOW)
    project.git("merge", "--quiet", "--no-edit", f"runs/{learnt.good}")
    project.git(
        "branch",
        "runs/toy-learn-tiny-later",
        project.git("commit-tree", "main^{tree}", "-p", "main", "-m", "Start toy/learn@tiny"),
    )
    (entry,) = [each for each in history(project.root) if each.run == "toy-learn-tiny-later"]
    assert (entry.state, entry.score, entry.decision) == ("unfinished", "", "")
    project.git(
        "branch",
        "-f",
        "runs/toy-learn-tiny-later",
        project.git("commit-tree", "main^{tree}", "-p", "main", "-m", "Report of toy/learn@tiny"),
    )
    (entry,) = [each for each in history(project.root) if each.run == "toy-learn-tiny-later"]
    assert (entry.state, entry.decision) == ("finished", "not judged")
    # nor does a merge of `promoted` take back what was merged of a run
    judge(project.root, learnt.worse, LOW)
    before = project.git("rev-parse", "main")
    project.git("merge", "--quiet", "--no-edit", "promoted")
    assert project.git("diff", "--name-only", before, "--", ".", ":!models") == ""


def test_a_promoted_run_is_so_where_the_branch_was_not_fetched(learnt: "Learnt") -> None:
    project = learnt.project
    judge(project.root, learnt.good, LOW)
    judge(project.root, learnt.worse, HIGH)
    told = {entry.run: entry.decision for entry in history(project.root)}
    tip = project.git("rev-parse", "promoted")
    project.git("branch", "-D", "promoted")
    assert {entry.run: entry.decision for entry in history(project.root)} == told
    assert told[learnt.good] == "promoted"
    # of a run that was killed before its note, what was fetched of the branch tells
    project.git("branch", "-f", f"runs/{learnt.good}", f"runs/{learnt.good}^")
    assert {e.run: e.decision for e in history(project.root)}[learnt.good] == "not judged"
    project.git("update-ref", "refs/remotes/origin/promoted", tip)
    assert {e.run: e.decision for e in history(project.root)}[learnt.good] == "promoted"


def test_a_run_that_goes_is_running_since_it_began(learnt: "Learnt") -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    with workspace(learnt.project.root, "toy-learn-tiny") as space:
        (entry,) = [each for each in history(learnt.project.root) if each.run == space.run]
        assert entry.state == "running"
        assert datetime.fromisoformat(entry.when) >= before  # not the commit's date
    (entry,) = [each for each in history(learnt.project.root) if each.run == space.run]
    assert entry.state == "unfinished"


def test_a_student_that_left_the_cache_cannot_be_promoted(learnt: "Learnt") -> None:
    shutil.rmtree(learnt.project / ".dvc/cache")
    with pytest.raises(
        MissingData, match="not in DVC's cache .* flow run toy/learn@tiny --ref runs/"
    ):
        judge(learnt.project.root, learnt.good, LOW)


def test_outside_git_there_is_no_promotion(tmp_path: Path) -> None:
    with pytest.raises(StillhouseError, match="is not in a git repository"):
        judge(tmp_path, "toy-learn-tiny-1", LOW)


def test_the_command_line_promotes_and_refuses(learnt: "Learnt") -> None:
    project = learnt.project
    params = project / "params.yaml"
    params.write_text(f"{params.read_text()}gate:\n  toy/learn:\n    minimum: {{accuracy: 0.7}}\n")
    refused = learnt.call("promote", learnt.worse)
    assert (refused.returncode, refused.stderr) == (1, "")
    assert (
        refused.stdout
        == f"{learnt.worse} refused, row 'student': accuracy 0.6, at least 0.7 asked\n"
    )
    passed = learnt.call("promote", f"runs/{learnt.good}")
    assert passed.returncode == 0, passed.stderr
    said = passed.stdout.splitlines()[-1]
    assert said == f"To have it: git merge promoted && dvc checkout {MODELS}/student.dvc"
    lines = learnt.call("history").stdout.splitlines()
    data = project.git("show", "main:data.dvc").split("md5: ")[1][:8]
    told = {line.split("  ")[1]: line.split("; ", 1)[1] for line in lines}
    assert told == {
        learnt.good: f"data {data}; finished; student: accuracy 0.8; promoted",
        learnt.worse: f"data {data}; finished; student: accuracy 0.6; refused: accuracy 0.6, at least 0.7 asked",
    }
    only = json.loads(learnt.call("history", "toy/learn@tiny", "--json").stdout)
    assert [entry["run"] for entry in only] == [learnt.good]
    wrong = learnt.call("history", "toy/lern")
    assert (wrong.returncode, "Did you mean 'toy/learn'?" in wrong.stderr) == (2, True)
