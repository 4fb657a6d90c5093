"""The list files of VLM-OOD, parquet folders, and what is wrong with them in one line."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stillhouse.data.data import Columns
from stillhouse.errors import BadData, BadSetting, MissingData, StillhouseError
from stillhouse.work import Work
from stillhouse_clip.class_lists import read_lists
from stillhouse_clip.data import ReadClasses
from stillhouse_clip.scenes import scenes

KNOWN, UNSEEN = ("b_bird", "a_bird"), ("z_bird", "y_bird")
LABELS = "z_bird 1 zebra_bird\na_bird 2 ant_bird\nb_bird 3 bee_bird\ny_bird 4 yak__bird\n"


def png(level: int) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), level, np.uint8)).save(data, "png")
    return data.getvalue()


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Lists of 3, 1 and 3 images a class; the images lie in a folder of all classes."""
    rows: dict[str, list[str]] = {"train": [], "val-on-train": [], "val": []}
    for part, names, count in (("train", KNOWN, 3), ("val-on-train", KNOWN, 1), ("val", UNSEEN, 3)):
        for name in names:
            (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                file = f"{name}/{part}_{number}.png"
                (tmp_path / "images" / file).write_bytes(png(40 * number))
                rows[part].append(f"{part}/{file}")
    for file, part in (
        ("train_data", "train"),
        ("val_on_train_data", "val-on-train"),
        ("val_data", "val"),
    ):
        (tmp_path / f"{file}.txt").write_text("\n".join(reversed(rows[part])) + "\n")
    (tmp_path / "label2text.txt").write_text(LABELS)
    (tmp_path / "chatgpt.txt").write_text("zebra-like.\nsix legs.\nfurry.\nlarge.\n")
    return tmp_path


def made(source: Any, **settings: Any) -> dict[str, Columns]:
    found = ReadClasses(size=16, **settings)({"source": source}, work=Work())
    return {
        port: each if isinstance(each, dict) else next(iter(each))  # type: ignore[call-overload]
        for port, each in found.items()
    }


def test_lists_are_read_with_names_and_descriptions_by_line(lists: Path) -> None:
    split = read_lists(lists)
    assert [text.folder for text in split.known] == ["a_bird", "b_bird"]
    assert [text.name for text in split.known] == ["ant bird", "bee bird"]
    assert [text.description for text in split.known] == ["six legs.", "furry."]
    assert [text.name for text in split.unseen] == ["yak bird", "zebra bird"]
    assert [text.description for text in split.unseen] == ["large.", "zebra-like."]
    assert {part: len(rows) for part, rows in split.parts.items()} == {
        "train": 6,
        "validation": 2,
        "unseen": 6,
    }
    assert [s.label for s in split.parts["train"]] == [0, 0, 0, 1, 1, 1]


def test_shots_are_the_first_images_of_unseen_classes(lists: Path) -> None:
    found = made(lists, shots=1)
    assert found["shots"]["labels"].tolist() == [2, 3]
    assert found["unseen"]["labels"].tolist() == [0, 0, 1, 1]
    assert found["shots"]["images"].shape == (2, 3, 16, 16)
    assert found["shots"]["images"].amax() == 0  # those of level 0
    assert found["unseen"]["images"].amin() == 40
    assert found["classes"]["name"] == ["ant bird", "bee bird", "yak bird", "zebra bird"]
    assert found["classes"]["known"].tolist() == [1, 1, 0, 0]
    assert found["classes"]["described"][0] == "a photo of ant bird . six legs."
    with pytest.raises(BadData, match=r"unseen class 0 has 3 images, too few for 3 shots"):
        made(lists, shots=3)


def test_images_may_lie_where_the_split_script_put_them(lists: Path) -> None:
    for part, folder in (("train", "train"), ("val-on-train", "val-on-train"), ("val", "val")):
        for image in sorted((lists / "images").glob(f"*/{part}_[0-9].png")):
            target = lists / folder / image.parent.name / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            image.rename(target)
    assert made(lists, shots=1)["train"]["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    for file in lists.glob("*.txt"):
        file.unlink()
    plain = made(lists, shots=1)
    assert plain["train"]["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert plain["classes"]["name"] == ["a bird", "b bird", "y bird", "z bird"]
    assert "described" not in plain["classes"]


def test_captions_go_with_their_images(lists: Path) -> None:
    (lists / "captions.txt").write_text("train/a_bird/train_1.png\tan ant on a leaf\n")
    captions = made(lists, shots=1)["train"]["captions"]
    assert captions == ["", "an ant on a leaf", "", "", "", ""]


def test_a_line_of_a_list_ends_at_a_line_feed_alone(lists: Path) -> None:
    (lists / "captions.txt").write_text("train/a_bird/train_1.png\tan ant\u2028on a leaf\n")
    (lists / "chatgpt.txt").write_text("zebra-like.\nsix\u2028legs.\nfurry.\nlarge.\n")
    assert read_lists(lists).known[0].description == "six\u2028legs."
    assert made(lists, shots=1)["train"]["captions"][1] == "an ant\u2028on a leaf"


WRONG: list[tuple[Callable[[Path], Any], str]] = [
    (
        lambda at: (at / "chatgpt.txt").write_text("one\ntwo\n"),
        "chatgpt.txt: 2 lines, and label2text.txt has 4",
    ),
    (
        lambda at: (at / "chatgpt.txt").write_text("one\n\nthree\nfour\n"),
        "chatgpt.txt: line 2 is empty",
    ),
    (
        lambda at: (at / "label2text.txt").write_text("a_bird 1 ant_bird\n"),
        "1 lines?, |label2text.txt",
    ),
    (
        lambda at: (at / "label2text.txt").write_text(LABELS.replace("ant_bird", "ant bird")),
        "line 2: expected <class folder>",
    ),
    (
        lambda at: (at / "label2text.txt").write_text(LABELS.replace("ant_bird", "bee_bird")),
        "both called 'bee bird'",
    ),
    (lambda at: (at / "label2text.txt").write_bytes(b"a\xff 1 b\n"), "not UTF-8"),
    (
        lambda at: (at / "label2text.txt").unlink(),
        "label2text.txt not found; chatgpt.txt describes",
    ),
    (
        lambda at: (at / "train_data.txt").write_text("a.png\n"),
        "train_data.txt: line 1: expected <part>/<class>",
    ),
    (lambda at: (at / "train_data.txt").write_text(""), "names no image"),
    (lambda at: (at / "train_data.txt").unlink(), "neither train_data.txt nor a folder train/"),
    (
        lambda at: (at / "val_data.txt").write_text("val/a_bird/val_0.png\n"),
        "'a_bird' is both trained on and",
    ),
    (
        lambda at: (at / "val_on_train_data.txt").write_text("v/q/x.png\n"),
        "class 'q' is not trained on",
    ),
    (
        lambda at: (at / "images/a_bird/train_0.png").unlink(),
        r"train/a_bird/train_0.png: not found",
    ),
    (
        lambda at: (at / "captions.txt").write_text("a b\n"),
        "captions.txt: line 1: expected <image>, a tab",
    ),
]


@pytest.mark.parametrize(("damage", "message"), WRONG)
def test_what_is_wrong_is_one_line(
    damage: Callable[[Path], Any], message: str, lists: Path
) -> None:
    damage(lists)
    with pytest.raises(StillhouseError, match=message) as caught:
        made(lists, shots=1)
    assert "\n" not in str(caught.value)


def test_a_label_list_of_another_length_names_the_class_it_lacks(lists: Path) -> None:
    (lists / "label2text.txt").write_text("".join(LABELS.splitlines(keepends=True)[:2]))
    (lists / "chatgpt.txt").write_text("one\ntwo\n")
    with pytest.raises(
        BadData, match=r"2 classes, but not 'b_bird', one of the 4 that images are of"
    ):
        made(lists, shots=1)


def test_drawn_scenes_are_split_by_class() -> None:
    found = made(scenes(), known=0.25, split=3)
    assert found["classes"]["known"].sum() == 30
    assert len(found["unseen"]["labels"].unique()) == 90
    assert found["shots"]["labels"].bincount()[30:].tolist() == [5] * 90
    assert found["train"]["labels"].max() == 29
    assert len(found["every"]["labels"].unique()) == 120
    assert made(scenes(), known=0.25, split=4)["classes"]["name"] != found["classes"]["name"]
    with pytest.raises(BadSetting, match="known must be > 0 and < 1"):
        ReadClasses(size=16, known=1.0)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    for part, count in (("train", 4), ("val", 2)):
        rows = [(label, level) for label in range(5) for level in range(count)]
        table = {
            "image": [{"bytes": png(10 * level), "path": ""} for _, level in rows],
            "label": [label for label, _ in rows],
        }
        pq.write_table(pa.table(table), tmp_path / f"{part}.parquet")
    listed = [{"wnid": f"n{i}", "en": f"thing {i}", "description": f"is {i}."} for i in range(5)]
    (tmp_path / "classes.json").write_text(json.dumps(listed))
    return tmp_path


def test_a_parquet_folder_is_split_by_class(parquet: Path) -> None:
    found = made(parquet, known=0.6, shots=2)
    assert (len(found["train"]["labels"]), len(found["validation"]["labels"])) == (12, 6)
    assert len(found["shots"]["labels"]) == 4
    assert len(found["unseen"]["labels"]) == 2 * (4 + 2 - 2)
    described = dict(zip(found["classes"]["name"], found["classes"]["description"], strict=True))
    assert described == {f"thing {i}": f"is {i}." for i in range(5)}


def test_descriptions_by_wnid_come_from_another_file(parquet: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    rows = [{"wnid": f"n{i}", "description": f"looks\u2028{i}."} for i in range(5)]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    read = ReadClasses(size=16, known=0.6, shots=1)
    found = read({"source": parquet, "descriptions": file}, work=Work())
    assert sorted(found["classes"]["description"]) == [f"looks\u2028{i}." for i in range(5)]  # type: ignore[index]
    file.write_text("\n".join(map(json.dumps, rows[:3])))
    with pytest.raises(BadData, match=r"texts.jsonl: describes no class n3 \('thing 3'\)"):
        read({"source": parquet, "descriptions": file}, work=Work())
    file.unlink()
    with pytest.raises(MissingData, match="texts.jsonl not found"):
        read({"source": parquet, "descriptions": file}, work=Work())
