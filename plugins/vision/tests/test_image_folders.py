"""Folders as users have them: names of parts, classes, files that are no samples, odd images."""

import io
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from stillhouse.data.notes import noted
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_vision.data import ReadImages
from stillhouse_vision.models import ImageSpec

GREY = ImageSpec(size=4, mean=(0.5,), std=(0.5,))


def png(value: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("L", (4, 4), value).save(stream, kind)
    return stream.getvalue()


def write_parquet(file: Path, rows: list[tuple[bytes, int]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    images, labels = zip(*rows, strict=True)
    pq.write_table(pa.table({"image": list(images), "label": list(labels)}), file)


def write_folder(folder: Path, classes: tuple[str, ...], count: int, first: int = 0) -> None:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(first, first + count):
            (folder / name / f"{i}.png").write_bytes(png(16 * number + i))


def read(source: Path, images: ImageSpec = GREY, **kwargs: Any) -> dict[str, dict[str, Tensor]]:
    made = ReadImages(images=images, classes=2, **kwargs)({"source": source}, work=Work.seeded(0))
    ports: dict[str, dict[str, Tensor]] = {}
    for port, columns in made.items():
        every: list[Any] = list(columns)
        ports[port] = {name: torch.cat([part[name] for part in every]) for name in every[0]}
    return ports


def told(source: Path, **kwargs: Any) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    lines: list[str] = []
    with noted(lines.append):
        made = read(source, **kwargs)
    return made, lines


def test_names_of_parts_in_any_case(tmp_path: Path) -> None:
    write_folder(tmp_path / "Train_set", ("cat", "dog"), 3)
    write_folder(tmp_path / "TEST", ("cat", "dog"), 1, first=9)
    made = read(tmp_path)
    assert made["train"]["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert made["test"]["images"][:, 0, 0, 0].tolist() == [9, 25]


def test_data_in_a_folder_of_their_own_and_a_class_called_train(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets" / "train", ("cat", "train"), 2)
    write_folder(tmp_path / "pets" / "test", ("cat", "train"), 1, first=9)
    assert len(read(tmp_path)["test"]["labels"]) == 2
    assert len(read(tmp_path / "pets" / "train", held_out=0.5)["test"]["labels"]) == 2


def test_classes_are_numbered_by_the_train_part(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ("cat", "dog"), 2)
    write_folder(tmp_path / "test", ("Dog", "cat"), 1, first=9)
    with pytest.raises(BadData, match=r"class 'Dog' is in the test part and not in the train part"):
        read(tmp_path)
    (tmp_path / "test" / "Dog").rename(tmp_path / "test" / "dog")
    (tmp_path / "train" / "eel").mkdir()
    with pytest.raises(BadData, match=r"class 'eel' is in the train part and not in the test part"):
        read(tmp_path)


def test_a_parquet_folder_called_training_decides_nothing(tmp_path: Path) -> None:
    source = tmp_path / "training"
    write_parquet(source / "train.parquet", [(png(i), i % 2) for i in range(6)])
    write_parquet(source / "test.parquet", [(png(i), i % 2) for i in range(10, 14)])
    made = read(source)
    assert made["train"]["images"][:, 0, 0, 0].tolist() == list(range(6))
    assert made["test"]["images"][:, 0, 0, 0].tolist() == list(range(10, 14))


def test_validation_rows_never_go_into_test(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "validation", "test")):
        rows = [(png(10 * number + i), i % 2) for i in range(4)]
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", rows)
    made, lines = told(tmp_path)
    assert made["test"]["images"][:, 0, 0, 0].tolist() == [20, 21, 22, 23]
    assert lines == [f"{tmp_path}: the validation part is not read; train and test are"]
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    made, lines = told(tmp_path)
    assert made["test"]["images"][:, 0, 0, 0].tolist() == [10, 11, 12, 13]
    assert lines == [f"{tmp_path}: no test part: the validation part is tested on instead"]


def test_files_left_out_are_counted_and_hidden_ones_are_not(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ("cat", "dog"), 2)
    write_folder(tmp_path / "test", ("cat", "dog"), 1, first=9)
    (tmp_path / "train" / "cat" / "._0.png").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / "loose.png").write_bytes(png(77))
    (tmp_path / "test" / "cat" / "x.heic").write_bytes(b"")
    made, lines = told(tmp_path)
    assert made["train"]["labels"].tolist() == [0, 0, 1, 1]
    assert lines == [f"{tmp_path}: 2 file(s) not read: 1 .heic, 1 .png (first: test/cat/x.heic)"]


def test_gif_and_jfif_are_images(tmp_path: Path) -> None:
    write_folder(tmp_path, ("cat", "dog"), 1)
    for name, kind in (("a.gif", "GIF"), ("b.JFIF", "JPEG")):
        for number, label in enumerate(("cat", "dog")):
            (tmp_path / label / name).write_bytes(png(50 + number, kind=kind))
    made, lines = told(tmp_path, held_out=0.3)
    assert len(made["train"]["labels"]) + len(made["test"]["labels"]) == 6
    assert lines == []


def test_the_same_image_in_two_parts(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ("cat", "dog"), 3)
    write_folder(tmp_path / "test", ("cat", "dog"), 1)
    with pytest.raises(BadData, match=r"test/cat/0.png: has the bytes of .*train/cat/0.png, in an"):
        read(tmp_path)


def test_copies_are_never_held_out_of_their_training_image(tmp_path: Path) -> None:
    rows = [(png(min(i, 15)), i % 2) for i in range(20)]  # the last five are one image
    write_parquet(tmp_path / "all.parquet", rows)
    made, lines = told(tmp_path, held_out=0.5)
    assert len(made["test"]["labels"]) == 10
    assert 15 not in made["test"]["images"]
    assert lines == ["5 image(s) that have copies are not drawn for testing"]
    write_parquet(tmp_path / "all.parquet", [(png(1), 0), (png(1), 0), (png(2), 1), (png(3), 1)])
    with pytest.raises(
        BadData, match=r"row 0: the only image of its class, but for copies; a held"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "test"), r"test: no class folders in this part of the data; expected"),
        (("cat/train", "dog/train"), r"cat/train: a part of the data within a class; expected"),
        (("test/cat", "test/dog"), r"has test, but no train part; expected train.parquet"),
        (("train/cat", "Train/cat"), r"Train and train are both the train part; keep one"),
    ],
)
def test_layouts_that_say_two_things(
    tmp_path: Path, folders: tuple[str, ...], message: str
) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "0.png").write_bytes(png(1))
    with pytest.raises(BadData, match=message):
        read(tmp_path)


def test_deep_and_turned_images_are_read_as_they_look(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(2):
            grey = np.full((4, 4), 65535 if i else 0, dtype=np.uint16)
            grey[0] = 40000 + number
            Image.fromarray(grey).save(tmp_path / name / f"{i}.png")
    made = read(tmp_path, held_out=0.5)
    values = torch.cat([made[port]["images"] for port in ("train", "test")])
    assert set(values.unique().tolist()) == {0, 156, 255}
    turned = Image.Exif()
    turned[0x0112] = 8
    photo = Image.new("L", (4, 4))
    photo.paste(255, (2, 0, 4, 4))
    for name in ("cat", "dog"):
        photo.save(tmp_path / name / "0.png", exif=turned)
        photo.putpixel((0, 0), 1)
    made = read(tmp_path, held_out=0.5)
    values = torch.cat([made[port]["images"] for port in ("train", "test")])
    bright = [image for image in values[:, 0] if image[0, 1] == 255 and image[2, 1] == 0]
    assert len(bright) == 2  # the right half is the upper one


def test_a_line_of_pixels_takes_no_memory(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("RGB", (1, 60_000), (number, i, 0)).save(tmp_path / name / f"{i}.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    made = read(tmp_path, ImageSpec(size=512), resize=True)
    assert made["train"]["images"].shape == (2, 3, 512, 512)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
