"""The files that a user names to read."""

from pathlib import Path

import pytest

from stillhouse.errors import MissingData
from stillhouse.files import each_file, free_name

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
