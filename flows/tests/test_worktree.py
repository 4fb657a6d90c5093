import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from stillhouse.errors import MissingExtra, StillhouseError
from stillhouse_flows.workspace.git import GitError, snapshot
from stillhouse_flows.workspace.worktree import prune, workspace

if TYPE_CHECKING:
    from conftest import Project


def test_a_clean_project_runs_at_its_own_commit(toy: "Project", own_home: Path) -> None:
    head = toy.git("rev-parse", "HEAD")
    with workspace(toy.root, "toy") as space:
        assert space.start.commit == head
        assert space.start.sentence() == f"commit {head[:12]}"
        assert space.root.is_relative_to(own_home / "workspaces")
        assert toy.git("branch", "--show-current", at=space.root) == space.branch
        assert space.branch.startswith("runs/toy-")
    assert space.root.is_dir()


def test_changed_and_untracked_files_come_along_and_the_users_tree_and_index_stay(
    toy: "Project",
) -> None:
    (toy / "code.py").write_text("print(2)\n")
    (toy / "new.py").write_text("new\n")
    (toy / "staged.py").write_text("staged\n")
    toy.git("add", "staged.py")
    (toy / "hidden.secret").write_text("no\n")
    (toy / "params.yaml").unlink()
    before = toy.state()
    with workspace(toy.root, "toy") as space:
        assert (space.root / "code.py").read_text() == "print(2)\n"
        assert (space.root / "new.py").is_file()
        assert (space.root / "staged.py").is_file()
        assert not (space.root / "hidden.secret").exists()
        assert not (space.root / "params.yaml").exists()
        assert (space.start.changed, space.start.added) == (3, 1)
        assert space.commit("start")
    assert toy.state() == before


def test_a_repository_without_a_commit_can_run(empty: "Project") -> None:
    empty.write({"params.yaml": "{}\n"})
    with workspace(empty.root, "toy") as space:
        assert (space.root / "params.yaml").is_file()
        assert space.start.sentence() == "1 files, none committed yet"


def test_ref_names_a_commit_and_leaves_changes_out(toy: "Project") -> None:
    toy.git("tag", "old")
    (toy / "code.py").write_text("print(2)\n")
    toy.commit()
    with workspace(toy.root, "toy", ref="old") as space:
        assert (space.root / "code.py").read_text() == "print(1)\n"
    with (
        pytest.raises(GitError, match=r"--ref nope: no such commit, branch or tag in"),
        workspace(toy.root, "toy", ref="nope"),
    ):
        pass


def test_a_hook_of_git_does_not_lead_commands_astray(
    toy: "Project", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert len(snapshot(toy.root).commit) == 40


def test_no_identity_and_no_hook_stops_a_commit(
    toy: "Project", monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = toy / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    toy.git("config", "user.useConfigOnly", "true")
    with workspace(toy.root, "toy") as space:
        (space.root / "result").write_text("1\n")
        commit = space.commit("result")
        assert "stillhouse" in toy.git("show", "--format=%an", "--stat", commit, at=space.root)


def test_ignored_results_are_committed_when_asked(toy: "Project") -> None:
    with workspace(toy.root, "toy") as space:
        kept = space.root / "runs" / "x.scores.json"
        kept.parent.mkdir()
        kept.write_text("{}\n")
        (space.root / "runs" / "model").write_text("large")
        space.commit("result", also=[kept])
        names = toy.git("ls-files", "runs", at=space.root).split()
        assert names == ["runs/x.scores.json"]


def test_local_dvc_settings_are_not_committed_and_the_cache_is_shared(toy: "Project") -> None:
    with workspace(toy.root, "toy") as space:
        space.commit("start")
        assert ".dvc/config.local" not in toy.git("ls-files", at=space.root)
        config = (space.root / ".dvc" / "config.local").read_text()
        assert str(toy / ".dvc" / "cache") in config
        assert "symlink" not in config


def test_outside_git_a_folder_is_copied_without_results_data_and_environments(
    tmp_path: Path,
) -> None:
    root = tmp_path / "plain"
    for name in (
        "params.yaml",
        "runs/x/big",
        "data/x",
        ".venv/bin/python",
        "src/a.py",
        "src/data/b.py",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    with workspace(root, "toy") as space:
        found = {p.relative_to(space.root).as_posix() for p in space.root.rglob("*") if p.is_file()}
        assert {f for f in found if not f.startswith(".dvc")} == {
            "params.yaml",
            "src/a.py",
            "src/data/b.py",
        }
        assert space.commit("start") == ""
    with (
        pytest.raises(
            StillhouseError, match="--ref main: .* is not in a git repository; leave it out"
        ),
        workspace(root, "toy", ref="main"),
    ):
        pass


def test_a_project_in_a_subfolder_keeps_its_place(toy: "Project") -> None:
    below = toy / "sub"
    below.mkdir()
    (below / "params.yaml").write_text("{}\n")
    toy.commit()
    with workspace(below, "toy") as space:
        assert space.root == space.folder / "sub"
        assert (space.root / "params.yaml").is_file()


def test_the_oldest_workspaces_go_and_a_running_one_stays(toy: "Project") -> None:
    spaces = []
    for age in range(4):
        with workspace(toy.root, "toy") as space:
            spaces.append(space)
        os.utime(space.folder, (1000 + age, 1000 + age))
    place = spaces[0].folder.parent
    with FileLock(place / f"{spaces[0].folder.name}.lock"):
        gone = prune(place, keep=2)
    assert gone == [spaces[1].folder]
    assert spaces[0].folder.is_dir()
    assert spaces[1].branch in toy.git("branch", "--list", "--format=%(refname:short)")
    assert str(spaces[1].folder) not in toy.git("worktree", "list")


def test_a_workspace_that_is_not_kept_leaves_neither_folder_nor_branch(toy: "Project") -> None:
    before = toy.git("branch", "--list")
    with workspace(toy.root, "plan", keep=False) as space:
        pass
    assert not space.folder.exists()
    assert toy.git("branch", "--list") == before


def test_a_remote_of_a_kind_that_is_not_installed_is_named(toy: "Project") -> None:
    from dvc.repo import Repo

    with Repo(str(toy.root)) as repo, repo.config.edit("local") as config:
        config["remote"] = {"store": {"url": "s3://bucket/x"}}
        config["core"]["remote"] = "store"
    told = r"^DVC remote 'store' \(s3://bucket/x\) needs `dvc-s3`, which is not installed. Run: uv"
    with pytest.raises(MissingExtra, match=told), workspace(toy.root, "toy"):
        pass
