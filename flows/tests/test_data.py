import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dvc.repo import Repo

from stillhouse.errors import BadData, MissingData, UnknownName
from stillhouse_flows.cli import data as data_cli
from stillhouse_flows.data.pinned import bring, datasets, pin
from stillhouse_flows.workspace.worktree import shared_cache, workspace

if TYPE_CHECKING:
    from conftest import Project


@pytest.fixture(autouse=True)
def here(toy: "Project", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.root)


def files(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in (root / "data").rglob("*") if p.is_file())


def test_only_what_a_run_needs_comes_from_the_cache(toy: "Project") -> None:
    shutil.rmtree(toy / "data")
    with workspace(toy.root, "toy") as space:
        version = bring(space.root, space.project, space.cache, ["a"])
        assert version == pin(toy.root)
        assert files(space.root) == ["data/a/one.txt"]
    assert not (toy / "data").exists()


def test_what_the_cache_lacks_is_copied_from_the_project_if_it_is_as_pinned(toy: "Project") -> None:
    shutil.rmtree(toy / ".dvc/cache")
    with workspace(toy.root, "toy") as space:
        bring(space.root, space.project, space.cache, ["b/two.txt"])
        assert files(space.root) == ["data/b/two.txt"]
        (toy / "data/b/two.txt").write_text("edited\n")
        assert (space.root / "data/b/two.txt").read_text() == "two\n"
        with pytest.raises(
            MissingData, match=r"^data/a of version .* Run: stillhouse data pull a$"
        ):
            bring(space.root, space.project, space.cache, ["a"])


def test_data_without_a_pin_has_no_version(toy: "Project") -> None:
    (toy / "data.dvc").unlink()
    with (
        workspace(toy.root, "toy") as space,
        pytest.raises(MissingData, match="stillhouse data add"),
    ):
        bring(space.root, space.project, space.cache, ["a"])


def test_status_shows_version_remote_and_each_data_set(
    toy: "Project", capsys: pytest.CaptureFixture[str]
) -> None:
    (toy / "data/a/one.txt").unlink()
    (toy / "data/b/two.txt").write_text("edited\n")
    toy.write({"data/c/three.txt": "new\n"})
    assert [(d.name, d.words()) for d in datasets(toy.root)] == [
        ("a", "not here"),
        ("b", "1 files differ"),
        ("c", "1 files differ"),
    ]
    data_cli.status()
    shown = capsys.readouterr().out
    version = pin(toy.root)
    assert version is not None
    assert f"version {version.md5}: 2 files" in shown
    assert "remote  none configured" in shown


def test_add_pins_a_new_version_and_loses_no_data_set_unasked(
    toy: "Project", capsys: pytest.CaptureFixture[str]
) -> None:
    before = pin(toy.root)
    toy.write({"data/c/three.txt": "new\n"})
    data_cli.add(replace=False)
    after = pin(toy.root)
    assert before is not None
    assert after is not None
    assert after.files == 3
    assert f"version {before.md5} -> {after.md5}" in capsys.readouterr().out
    shutil.rmtree(toy / "data/a")
    with pytest.raises(
        BadData, match="would lose a; run stillhouse data pull first, or give --replace"
    ):
        data_cli.add(replace=False)
    data_cli.add(replace=True)
    assert [d.name for d in datasets(toy.root)] == ["b", "c"]


def test_add_refuses_an_empty_folder(toy: "Project") -> None:
    shutil.rmtree(toy / "data")
    (toy / "data").mkdir()
    with pytest.raises(MissingData, match="is empty or not there"):
        data_cli.add(replace=False)


def test_pull_brings_one_data_set_from_the_cache(toy: "Project") -> None:
    shutil.rmtree(toy / "data")
    data_cli.pull(["a"])
    assert files(toy.root) == ["data/a/one.txt"]
    with pytest.raises(UnknownName, match=r"unknown data set 'bb'\. Did you mean"):
        data_cli.pull(["bb"])


def test_pull_without_a_remote_says_how_to_add_one(toy: "Project") -> None:
    _lose(toy)
    with pytest.raises(
        MissingData, match=r"no DVC remote is configured\. Run: dvc remote add --local"
    ):
        data_cli.pull(None)


def test_pull_from_a_remote_and_from_one_that_lacks_it(toy: "Project", tmp_path: Path) -> None:
    _remote(toy, tmp_path / "full")
    with Repo(str(toy.root)) as repo:
        repo.push(["data.dvc"])
    _lose(toy)
    data_cli.pull(["b"])
    assert files(toy.root) == ["data/b/two.txt"]
    data_cli.pull(None)
    assert files(toy.root) == ["data/a/one.txt", "data/b/two.txt"]
    _lose(toy)
    _remote(toy, tmp_path / "bare")
    with pytest.raises(MissingData, match=r"remote 'place' \(.*bare\) lacks a of version"):
        data_cli.pull(["a"])


def _remote(project: "Project", folder: Path) -> None:
    folder.mkdir()
    text = f"[core]\n    remote = place\n['remote \"place\"']\n    url = {folder}\n"
    (project / ".dvc/config.local").write_text(text)


def _lose(project: "Project") -> None:
    shutil.rmtree(project / "data")
    shutil.rmtree(shared_cache(project.root) / "files")
    shutil.rmtree(project / ".dvc/tmp")
