"""Digests of large files that are not hashed again."""

import os
import sqlite3
from pathlib import Path

import pytest

from stillhouse import digest, memo
from stillhouse.digest import file_digest, path_digest, reported


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("stillhouse.memo.LARGE", 1)
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(memo.VERIFY, raising=False)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes were read."""
    names: list[str] = []

    def counted(path: Path) -> str:
        names.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(digest, "file_digest", counted)
    return names


def settle(*paths: Path) -> None:
    """As if they had been written long ago; their times of change stay."""
    for path in paths:
        os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("stillhouse.memo.RACY_SECONDS", -60.0)  # what is written now is settled
    place = tmp_path / "data"
    place.mkdir()
    (place / "a").write_bytes(b"aaa")
    (place / "b").write_bytes(b"bbb")
    settle(place / "a", place / "b")
    return place


def test_unchanged_files_are_hashed_once(folder: Path, hashed: list[str]) -> None:
    first = path_digest(folder)
    assert hashed == ["a", "b"]
    assert path_digest(folder) == first
    assert hashed == ["a", "b"]


def test_a_changed_file_alone_is_hashed_again(folder: Path, hashed: list[str]) -> None:
    first = path_digest(folder)
    (folder / "b").write_bytes(b"bbc")
    settle(folder / "b")  # same size, same time of writing: the time of change tells
    assert path_digest(folder) != first
    assert hashed == ["a", "b", "b"]


def test_a_moved_folder_is_not_hashed_again(folder: Path, hashed: list[str]) -> None:
    first = path_digest(folder)
    moved = folder.rename(folder.with_name("moved"))
    assert path_digest(moved) == first
    assert hashed == ["a", "b"]


def test_what_was_written_a_moment_ago_is_hashed_again(tmp_path: Path, hashed: list[str]) -> None:
    (tmp_path / "new").write_bytes(b"new")
    path_digest(tmp_path / "new")
    path_digest(tmp_path / "new")
    assert hashed == ["new", "new"]


def test_all_is_hashed_when_asked(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path_digest(folder)
    monkeypatch.setenv(memo.VERIFY, "1")
    path_digest(folder)
    assert hashed == ["a", "b", "a", "b"]


def test_a_memo_that_cannot_be_read_knows_nothing(folder: Path, hashed: list[str]) -> None:
    first = path_digest(folder)
    (memo.home() / memo.FILE).write_bytes(b"no database")
    assert path_digest(folder) == first
    assert hashed == ["a", "b", "a", "b"]


def test_digests_taken_while_writing_are_kept(folder: Path, hashed: list[str]) -> None:
    known = {folder / name: file_digest(folder / name) for name in ("a", "b")}
    memo.remember_written(known)
    wanted = path_digest(folder)
    assert hashed == []
    with sqlite3.connect(memo.home() / memo.FILE) as base:
        base.execute("DELETE FROM digests")
    assert path_digest(folder) == wanted


def test_what_is_hashed_is_reported_after_each_file_and_what_is_known_is_not(
    folder: Path, tmp_path: Path
) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    settle(*files)
    sizes = [path.stat().st_size for path in files]
    assert len(sizes) > 1
    heard: list[tuple[int, int]] = []
    with reported(lambda read, size: heard.append((read, size))):
        path_digest(folder)
        path_digest(folder)
    assert heard == [(sum(sizes[: n + 1]), sum(sizes)) for n in range(len(sizes))]
    path_digest(folder)  # nobody waits for it now
    assert len(heard) == len(sizes)


def test_more_files_than_one_query_names_are_known(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse.memo.MOST", 2)
    for number in range(5):
        (folder / f"more{number}").write_bytes(bytes([number]))
    settle(*folder.iterdir())
    first = path_digest(folder)
    assert len(hashed) == 7
    assert path_digest(folder) == first
    assert len(hashed) == 7
