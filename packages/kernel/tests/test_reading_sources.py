"""Which files count as samples, which part they belong to, and what is said of the others."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.data.notes import noted
from stillhouse.data.sources import (
    check_apart,
    check_keys,
    check_stems,
    copied,
    listed_once,
    note_left_out,
    visible_files,
    visible_folders,
)
from stillhouse.data.splits import (
    check_classes,
    child_splits,
    parts,
    split_named,
    split_of,
    split_within,
)
from stillhouse.errors import BadData


def write(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return [root / name for name in names]


def lines_of(act: Callable[[], object]) -> list[str]:
    lines: list[str] = []
    with noted(lines.append):
        act()
    return lines


def test_hidden_files_and_folders_are_skipped_at_any_depth(tmp_path: Path) -> None:
    source = tmp_path / ".cache" / "pets"  # where the source itself lies does not count
    kept = write(source, "cat/1.png", "cat/deep/2.png", "z.png")
    write(source, ".DS_Store", "cat/._1.png", "cat/.ipynb_checkpoints/1-checkpoint.png")
    write(source, "__MACOSX/cat/1.png", "cat/@eaDir/1.png", "cat/Thumbs.db")
    assert visible_files(source) == kept
    assert visible_folders(source) == [source / "cat"]
    assert visible_files(kept[0]) == [kept[0]]


def test_linked_folders_are_followed_and_rings_refused(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "1.png")
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "deep" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    assert visible_files(tmp_path / "data") == [
        tmp_path / "data" / "deep" / "cat" / "1.png", tmp_path / "data" / "dog" / "1.png"
    ]  # fmt: skip
    (tmp_path / "data" / "deep" / "up").symlink_to(tmp_path / "data")
    with pytest.raises(BadData, match=r"deep/up: a link to a folder that it lies in; remove it$"):
        visible_files(tmp_path / "data")


def test_dangling_links_and_undecodable_names_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("gone/b.png")
    with pytest.raises(BadData) as caught:
        visible_files(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/a.png: a link to 'gone/b.png', which is not found; restore the file or remove "
        "the link"
    )
    (tmp_path / "a.png").unlink()
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png")).write_bytes(b"")
    with pytest.raises(BadData, match=r"the name 'caf\\udce9.png' in it is not UTF-8; rename"):
        visible_files(tmp_path)


def test_what_is_left_out_is_counted_in_one_line(tmp_path: Path) -> None:
    files = write(tmp_path, "a/1.png", "a/2.svg", "b.svg", "LICENSE")
    said = lines_of(lambda: note_left_out(tmp_path, files, files[:1]))
    assert said == [f"{tmp_path}: 3 file(s) not read: 2 .svg, 1 without suffix (first: LICENSE)"]
    assert lines_of(lambda: note_left_out(tmp_path, files, files)) == []


def test_two_files_of_one_stem(tmp_path: Path) -> None:
    files = write(tmp_path, "a/1.jpg", "b/1.png", "a/1.png")
    check_stems(files[:2])
    with pytest.raises(BadData, match=r"a/1.png: .*a/1.jpg has the same stem; keep one of them$"):
        check_stems(files)


def test_a_frame_in_two_parts() -> None:
    check_keys({"train": [("train.txt: line 1", "a")], "val": [("val.txt: line 1", "b")]})
    with pytest.raises(BadData) as caught:
        check_keys({"train": [("train.txt: line 1", "a")], "val": [("val.txt: line 2", "a")]})
    assert str(caught.value) == (
        "val.txt: line 2: in val, and in train too (train.txt: line 1); keep it in one split"
    )


def test_the_same_file_in_two_parts_is_refused(tmp_path: Path) -> None:
    files = write(tmp_path, "train/1.png", "train/2.png", "test/9.png", "test/8.png")
    named = {
        split: [(str(f), f) for f in files if f.parent.name == split] for split in ("train", "test")
    }
    check_apart(named)
    files[2].write_bytes(files[0].read_bytes())
    files[1].write_bytes(files[0].read_bytes())  # twice in one part: no leak
    with pytest.raises(
        BadData, match=r"test/9.png: has the bytes of .*train/1.png, in another spl"
    ):
        check_apart(named)
    large = bytes(10_000)
    files[0].write_bytes(large + b"a")
    files[2].write_bytes(large + b"b")  # the same size and beginning
    files[1].write_bytes(b"")
    check_apart(named)


def test_samples_that_have_copies() -> None:
    rows = [("a", b"1"), ("b", b"2"), ("c", b"1"), ("d", b"1"), ("e", b"3")]
    assert copied(rows) == {"a", "c", "d"}


def test_rows_in_two_parts_are_counted() -> None:
    rows = {"train": [("train: row 0", b"abc")], "test": [("test: row 5", b"abc")]}
    assert lines_of(lambda: check_apart(rows)) == [
        "1 image(s) are in two splits with the same bytes (test: row 5: train: row 0)"
    ]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *((name, "train") for name in ("train", "Train", "TRAINING", "train_set", "trainset")),
        *((name, "train") for name in ("train2017", "train-00000-of-00002", "train images")),
        *((name, "validation") for name in ("val", "Valid", "VALIDATION", "val_set", "dev")),
        *((name, "test") for name in ("test", "TEST", "testing", "test-data", "test_1")),
        *((name, None) for name in ("trains", "train_extra", "lossless_train", "tests", "cat")),
        *((name, None) for name in ("trainer", "validity", "contest", "testament", "")),
    ],
)
def test_names_of_parts(name: str, split: str | None) -> None:
    assert split_named(name) == split


def test_words_within_a_name_and_names_of_a_format() -> None:
    assert split_within("instances_train2017") == "train"
    assert split_within("COFW_test_color") == "test"
    assert split_within("contest") is None
    assert split_named("iBUG", {"ibug": "test"}) == "test"


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train/1.parquet", "train"),
        ("train/test-0000.parquet", "test"),  # the file's word before the folder's
        ("Test/a/b/1.pts", "test"),
        ("a/training/1.pts", "train"),
        ("1.pts", None),
    ],
)
def test_only_folders_below_the_source_count(tmp_path: Path, file: str, split: str | None) -> None:
    source = tmp_path / "training"
    assert split_of(source / file, source) == split


def test_folders_of_two_parts(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"1.pts: in test and in train, which are two parts of the"):
        split_of(tmp_path / "test" / "train" / "1.pts", tmp_path)
    children = [tmp_path / "train", tmp_path / "Val", tmp_path / "other"]
    assert child_splits(tmp_path, children) == {"train": children[0], "validation": children[1]}
    with pytest.raises(BadData, match=r"train and Training are both the train part; keep one$"):
        child_splits(tmp_path, [*children, tmp_path / "Training"])


def test_parts_are_never_mixed(tmp_path: Path) -> None:
    train, val, test = ["a", "b"], ["c"], ["d"]
    assert parts({"train": train, "test": test}, tmp_path, validates=False) == {
        "train": train, "test": test
    }  # fmt: skip
    whole = {"train": train, "validation": val, "test": test}
    assert parts(whole, tmp_path, validates=True) == whole  # type: ignore[arg-type]

    said = lines_of(lambda: parts(whole, tmp_path, validates=False))  # type: ignore[arg-type]
    assert said == [f"{tmp_path}: the validation part is not read; train and test are"]
    said = lines_of(lambda: parts({"train": train, "validation": val}, tmp_path, validates=True))
    assert said == [f"{tmp_path}: no test part: the validation part is tested on instead"]
    assert parts({"train": train, "validation": val}, tmp_path, validates=True)["test"] == val
    with pytest.raises(BadData, match="has test and validation, but no train part; add one"):
        parts({"test": test, "validation": val, "train": []}, tmp_path, validates=True)


def test_classes_are_the_train_parts(tmp_path: Path) -> None:
    same = {"train": ["dog", "cat"], "test": ["cat", "dog"]}
    assert check_classes(same, tmp_path) == ["cat", "dog"]  # type: ignore[arg-type]
    with pytest.raises(BadData) as caught:
        check_classes({"train": ["cat", "dog"], "test": ["Dog", "cat"]}, tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: class 'Dog' is in the test part and not in the train part (but 'dog': rename "
        "one); give each part the same classes"
    )
    with pytest.raises(BadData, match="class 'dog' is in the train part and not in the test part;"):
        check_classes({"train": ["cat", "dog"], "test": ["cat"]}, tmp_path)


def test_files_come_in_the_order_of_paths(tmp_path: Path) -> None:
    made = write(tmp_path, "a.b/1", "a/2", "a/1", "a-b/1", "B/1", "a/.hidden/3", "z")
    seen = visible_files(tmp_path)
    assert seen == sorted(path for path in made if ".hidden" not in path.parts)
    assert [path.name for path in visible_folders(tmp_path)] == ["B", "a", "a-b", "a.b"]


def test_within_looks_at_the_same_data_a_folder_is_walked_once(tmp_path: Path) -> None:
    write(tmp_path, "a/1")
    with listed_once():
        first = visible_files(tmp_path)
        first.append(tmp_path)  # the caller's own list
        folders = visible_folders(tmp_path)
        write(tmp_path, "b/2")
        assert [path.name for path in visible_files(tmp_path)] == ["1"]
        assert visible_folders(tmp_path) == folders
    assert [path.name for path in visible_files(tmp_path)] == ["1", "2"]
