"""The files that a user names to read."""

from pathlib import Path

import pytest

from stillhouse.errors import MissingData
from stillhouse.files import Below, Stat, below, each_file, free_name, tree

PICTURES = (".png", ".jpg")


def test_a_folder_stands_for_all_below_it_of_these_suffixes_in_order(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name in ("b/deep/2.PNG", "b/1.jpg", "b/notes.txt", "a.bin"):
        (tmp_path / name).touch()

    found = list(each_file([tmp_path / "a.bin", tmp_path / "b"], PICTURES, kind="picture"))

    assert [str(p.relative_to(tmp_path)) for p in found] == ["a.bin", "b/1.jpg", "b/deep/2.PNG"]


def test_a_path_that_is_not_there_and_a_folder_without_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"gone: there is no such file; give a cloud or a folder"):
        list(each_file([tmp_path / "gone"], PICTURES, kind="cloud"))
    with pytest.raises(MissingData, match=r"no clouds in this folder; give one with clouds"):
        list(each_file([tmp_path], PICTURES, kind="cloud"))


def test_a_taken_name_is_numbered_and_every_given_name_is_then_taken() -> None:
    taken: set[str] = set()

    assert [free_name(stem, taken) for stem in ("a", "a", "b", "a")] == ["a", "a-2", "b", "a-3"]
    assert taken == {"a", "a-2", "a-3", "b"}


def test_what_lies_below_a_folder_stands_as_paths_are_sorted(tmp_path: Path) -> None:
    names = ("a", "a b/c", "a-b", "a.b/x/y", "ab/z", "a+/0", "Z", "é/1", "b/empty")
    for name in names:
        path = tmp_path / name
        if path.name == "empty":
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    found = below(tmp_path)
    assert tree(tmp_path) == sorted(tmp_path / name for name in names)
    for each in found:
        there = (tmp_path / each.name).stat()
        if each.name == "b/empty":
            assert each.stat is None
        else:
            assert each.stat == Stat.of(there)
            assert each.stat.size == len(each.name.encode())


def test_a_file_that_a_link_leads_to_is_known_by_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("here")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "kept")
    (found,) = below(folder)
    assert found == Below("link", Stat.of((tmp_path / "kept").stat()))
