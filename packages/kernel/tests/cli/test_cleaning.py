"""`clean`: what goes, what stays, and what it says."""

import os
import shutil
import time

import pytest
from filelock import FileLock

from stillhouse.cli.cleaning import Kept, choose, seconds, survey
from stillhouse.errors import BadSetting

HOUR, DAY = 3600, 86400


def kept(path, name: str, *, size: int, days: float) -> Kept:
    return Kept(kind="checkpoint", path=path / name, size=size, changed=-days * DAY)


def names(items: list[Kept]) -> list[str]:
    return [item.path.name for item in items]


def test_ages() -> None:
    assert [seconds(t) for t in ("90m", "2h", "1.5d", "1w")] == [5400, 7200, 1.5 * DAY, 7 * DAY]
    for wrong in ("30", "d", "-1d", "3 d", "1y"):
        with pytest.raises(BadSetting, match=f"--older-than {wrong}: expected a number and"):
            seconds(wrong)


def test_old_ones_go_then_the_oldest_until_enough_is_left(tmp_path) -> None:
    items = [
        kept(tmp_path, "a", size=10, days=40),
        kept(tmp_path, "b", size=20, days=9),
        kept(tmp_path, "c", size=30, days=2),
        kept(tmp_path, "d", size=40, days=0.01),
    ]
    assert names(choose(items, now=0, older_than=30 * DAY, keep=None)) == ["a"]
    assert names(choose(items, now=0, older_than=30 * DAY, keep=90)) == ["a"]
    assert names(choose(items, now=0, older_than=30 * DAY, keep=89)) == ["a", "b"]
    assert names(choose(items, now=0, older_than=90 * DAY, keep=90)) == ["a"]
    assert names(choose(items, now=0, older_than=300, keep=None)) == ["a", "b", "c", "d"]
    assert names(choose(items, now=0, older_than=90 * DAY, keep=0)) == ["a", "b", "c", "d"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = tmp_path / "home"
    old = time.time() - 40 * DAY
    for name in ("workspaces/repo/run-1", "checkpoints/0123", "teacher-cache/ab/abcd"):
        folder = home / name / "inside"
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(2048))
        for path in (folder / "file", folder, folder.parent):
            os.utime(path, (old, old))
    (home / "checkpoints" / "fresh").mkdir()
    (home / "something-else" / "x").mkdir(parents=True)
    monkeypatch.setenv("STILLHOUSE_HOME", str(home))
    return home


def test_dry_run_says_it_and_frees_nothing(stillhouse, home) -> None:
    before = sorted(home.rglob("*"))
    code, out, _ = stillhouse("clean", "--dry-run")
    assert code == 0
    assert out.count("would free") == 3
    assert "would free    2.0 KiB  teacher cache, 40.0 days old: " in out
    assert out.endswith(f"Would free 6.0 KiB; 6.0 KiB in use under {home}.\n")
    assert sorted(home.rglob("*")) == before


def test_what_is_locked_or_marked_stays_and_says_why(stillhouse, home) -> None:
    (home / "workspaces" / "repo" / "run-1.keep").touch()
    with FileLock(home / "checkpoints" / "0123.lock"):
        code, out, _ = stillhouse("clean")
    assert code == 0
    assert "kept     2.0 KiB  checkpoint, in use by a run: " in out
    assert "kept     2.0 KiB  workspace, marked to be kept: " in out
    assert out.endswith(f"Freed 2.0 KiB; 4.0 KiB in use under {home}.\n")
    assert (home / "checkpoints" / "0123" / "inside" / "file").exists()
    assert not (home / "teacher-cache" / "ab" / "abcd").exists()


def test_folders_that_vanish_meanwhile_are_no_error(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "checkpoints" / "0123"
    (folder / "step-1").mkdir(parents=True)
    walk = os.walk

    def removed_while_read(path):
        for found in walk(path):
            shutil.rmtree(folder, ignore_errors=True)
            yield found

    monkeypatch.setattr(os, "walk", removed_while_read)
    (found,) = survey(tmp_path)
    assert (found.path, found.size) == (folder, 0)
    assert survey(tmp_path) == []


def test_clean_frees_only_what_is_old(stillhouse, home) -> None:
    code, out, _ = stillhouse("clean")
    assert code == 0
    assert out.endswith(f"Freed 6.0 KiB; 0 B in use under {home}.\n")
    left = {p.relative_to(home).as_posix() for p in home.rglob("*") if not list(p.glob("*"))}
    assert left == {"workspaces/repo", "checkpoints/fresh", "teacher-cache/ab", "something-else/x"}
    assert stillhouse("clean", "--older-than", "soon")[0] == 2
