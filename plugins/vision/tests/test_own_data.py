"""What is read off data of a user's own, and which settings follow."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stillhouse.errors import BadSetting, MissingData
from stillhouse.recipe import Recipe
from stillhouse.runs import stage_key
from stillhouse.settings import Settings, make_recipe, make_settings, parse_assignments
from stillhouse.stages import Train
from stillhouse_vision.samples import digits

NAME = "vision/distill"
BIRDS = ("finch", "owl", "wren")


def image(label: int, number: int, size: tuple[int, int], mode: str) -> Image.Image:
    arrays = digits()
    rows = np.flatnonzero(arrays["train_labels"] == label)
    return Image.fromarray(arrays["train_images"][rows[number]][0]).resize(size).convert(mode)


def folders(
    source: Path,
    names: Sequence[str] = BIRDS,
    *,
    size: tuple[int, int] = (40, 48),
    mode: str = "RGB",
    parts: Sequence[str] = ("train", "test"),
) -> str:
    """Digits as photos of birds; the reference to them."""
    for place, part in enumerate(parts):
        for label, name in enumerate(names):
            for number in range(10 * place, 10 * place + 10):
                file = source / part / name / f"image-{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image(label, number, size, mode).save(file)
    return f"file:{source}"


def parquet(source: Path, *, names: Sequence[str] = ()) -> str:
    for place, part in enumerate(("train", "test")):
        rows = [(label, 10 * place + number) for label in range(3) for number in range(10)]
        encoded: list[dict[str, Any]] = []
        for label, number in rows:
            stream = io.BytesIO()
            image(label, number, (28, 28), "L").save(stream, "PNG")
            encoded.append({"bytes": stream.getvalue(), "path": None})
        table = pa.table({"image": encoded, "label": [label for label, _ in rows]})
        if names:
            feature = {"names": list(names), "_type": "ClassLabel"}
            text = json.dumps({"info": {"features": {"label": feature}}})
            table = table.replace_schema_metadata({"huggingface": text})
        source.mkdir(exist_ok=True)
        pq.write_table(table, source / f"{part}.parquet")
    return f"file:{source}"


def chosen(scale: str, name: str = NAME, **given: Any) -> Settings:
    return make_settings(name, scale, given)


def recipe(settings: Settings, name: str = NAME) -> Recipe:
    return make_recipe(name, settings)


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_classes_names_and_size_come_from_the_folders_at_every_scale(
    scale: str, tmp_path: Path
) -> None:
    settings = chosen(scale, data=folders(tmp_path / "birds"))
    assert (settings.classes, settings.names) == (3, BIRDS)  # type: ignore[attr-defined]
    assert (settings.size, settings.resize) == (32, True)  # type: ignore[attr-defined]
    assert len(settings.mean) == len(settings.std) == 3  # type: ignore[attr-defined]
    made = recipe(settings)
    assert made.stage("data").make.classes == 3  # type: ignore[attr-defined]
    plain = made.stage("plain-0")
    assert isinstance(plain, Train)
    assert plain.fresh["student"].kwargs["images"]["names"] == list(BIRDS)


def test_undivided_folders_and_small_grey_squares(tmp_path: Path) -> None:
    source = folders(tmp_path / "birds", size=(28, 28), mode="L", parts=(".",))
    settings = chosen("small", data=source)
    assert (settings.classes, settings.names) == (3, BIRDS)  # type: ignore[attr-defined]
    assert (settings.size, settings.mean, settings.std) == (28, (0.5,), (0.25,))  # type: ignore[attr-defined]


def test_parquet_gives_the_names_of_its_class_label_or_else_counts_its_labels(
    tmp_path: Path,
) -> None:
    named = chosen("small", data=parquet(tmp_path / "a", names=BIRDS))
    counted = chosen("small", data=parquet(tmp_path / "b"))
    assert (named.classes, named.names, named.size) == (3, BIRDS, 28)  # type: ignore[attr-defined]
    assert (counted.classes, counted.names) == (3, ())  # type: ignore[attr-defined]
    with pytest.raises(BadSetting, match="the data number their classes as finch,owl,wren"):
        chosen("small", data=parquet(tmp_path / "a", names=BIRDS), names=["owl", "finch", "wren"])


def test_what_a_user_says_holds(tmp_path: Path) -> None:
    source = folders(tmp_path / "birds")
    said: Any = {
        "names": ["owl", "wren", "finch"],
        "size": 16,
        "resize": False,
        "mean": 0.4,
        "std": 0.2,
    }
    settings = chosen("small", data=source, **said)
    assert settings.names == ("owl", "wren", "finch")  # type: ignore[attr-defined]
    assert (settings.size, settings.resize, settings.mean) == (16, False, (0.4,))  # type: ignore[attr-defined]


def test_texts_of_the_command_line_are_settings_too(tmp_path: Path) -> None:
    source = folders(tmp_path / "birds")
    texts = parse_assignments([f"data={source}", "classes=3", "size=48", "names=wren,owl,finch"])
    for name in (NAME, "vision/diswot", "vision/knfu", "vision/kd3"):
        settings: Any = make_settings(name, "small", texts)
        assert (settings.classes, settings.size) == (3, 48)
        assert settings.names == ("wren", "owl", "finch")


def test_preset_data_are_not_looked_at_and_keep_their_variant(tmp_path: Path) -> None:
    for scale in ("tiny", "small", "paper"):
        preset = chosen(scale)
        assert chosen(scale, data=preset.data).variant() == scale
    missing = f"file:{tmp_path / 'nowhere'}"
    with pytest.raises(MissingData, match=r"nowhere not found"):
        chosen("small", data=missing)


def test_recorded_settings_say_it_all_so_that_nobody_looks_again(tmp_path: Path) -> None:
    source = tmp_path / "birds"
    settings = chosen("small", data=folders(source))
    source.rename(tmp_path / "gone")
    assert make_settings(NAME, "small", settings.overrides()) == settings
    again = make_settings(NAME, "small", json.loads(json.dumps(settings.overrides())))
    assert again.variant() == settings.variant()


def test_another_class_is_another_variant_and_another_key(tmp_path: Path) -> None:
    before = chosen("tiny", data=folders(tmp_path / "birds"))
    after = chosen("tiny", data=folders(tmp_path / "birds", (*BIRDS, "rook")))
    assert after.names == ("finch", "owl", "rook", "wren")  # type: ignore[attr-defined]
    assert before.variant() != after.variant()
    keys = {
        stage_key(recipe(settings).stage(name), {}, "")
        for settings in (before, after)
        for name in ("data", "teacher", "plain-0")
    }
    assert len(keys) == 6


def test_small_with_own_data_trains_a_teacher_unless_one_is_given(tmp_path: Path) -> None:
    source = folders(tmp_path / "birds")
    trained = recipe(chosen("small", data=source)).stage("teacher")
    (tmp_path / "mine.pth").touch()
    mine = f"file:{tmp_path / 'mine.pth'}"
    given = recipe(chosen("small", data=source, teacher=mine)).stage("teacher")
    assert isinstance(trained, Train)
    assert trained.fresh
    assert given.inputs["checkpoint"] == mine


def test_the_memory_of_crd_has_a_row_for_each_training_image(tmp_path: Path) -> None:
    for source in (folders(tmp_path / "a"), folders(tmp_path / "b", parts=(".",))):
        made = recipe(chosen("small", data=source, objective="crd"))
        stage = made.stage("crd-0")
        assert isinstance(stage, Train)
        assert stage.fresh["memory"].kwargs["samples"] == 30


def test_diswot_calibrates_on_what_there_is(tmp_path: Path) -> None:
    source = folders(tmp_path / "birds", size=(8, 8), mode="L")
    settings = chosen("small", "vision/diswot", data=source)
    make = recipe(settings, "vision/diswot").stage("calibration-data").make  # type: ignore[attr-defined]
    assert (make.size, make.train, make.validation) == (8, 22, 8)
    assert settings.nas == 0  # type: ignore[attr-defined]


def test_knfu_groups_the_classes_that_there_are(tmp_path: Path) -> None:
    source = folders(tmp_path / "birds", ("finch", "owl"))
    settings = chosen("small", "vision/knfu", data=source)
    assert settings.groups == ((0,), (1,))  # type: ignore[attr-defined]
    assert settings.members == (5, 5)  # type: ignore[attr-defined]
    assert recipe(settings, "vision/knfu").stage("split-0")
