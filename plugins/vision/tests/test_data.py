import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from stillhouse.data import save_data
from stillhouse.errors import BadData
from stillhouse.work import Work
from stillhouse_vision.data import ReadImages
from stillhouse_vision.models import ImageSpec

COLOUR = ImageSpec(size=4)
GREY = ImageSpec(size=4, mean=(0.5,), std=(0.5,))


def png(value: int, size: tuple[int, int] = (4, 4), mode: str = "RGB", kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, value).save(stream, kind)
    return stream.getvalue()


def write_parquet(
    file: Path, rows: Sequence[tuple[Any, Any]], image: str = "image", label: str = "label"
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": encoded, "path": None} for encoded, _ in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {image: pa.array(images, type=kind), label: pa.array([row[1] for row in rows])}
    pq.write_table(pa.table(columns), file)


def write_folder(folder: Path, classes: Sequence[str], count: int, first: int = 0) -> None:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(first, first + count):
            (folder / name / f"{i}.png").write_bytes(png(16 * number + i, mode="L"))


def read(
    source: Path, images: ImageSpec = COLOUR, classes: int = 2, **kwargs: Any
) -> dict[str, dict[str, Tensor]]:
    reader = ReadImages(images=images, classes=classes, **kwargs)
    made = reader({"source": source}, work=Work.seeded(0))
    ports: dict[str, dict[str, Tensor]] = {}
    for port, parts in made.items():
        every = [parts] if isinstance(parts, dict) else list(parts)
        ports[port] = {name: torch.cat([part[name] for part in every]) for name in every[0]}
    return ports


def test_parquet_as_hugging_face_stores_it(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", [(png(1), 0)])
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", [(png(2), 1)])
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [(png(3), 1), (png(4), 0)])
    write_parquet(tmp_path / "data" / "lossless_train.parquet", [(png(5), 1)])
    made = read(tmp_path)
    assert made["train"]["labels"].tolist() == [0, 1]
    assert made["test"]["labels"].tolist() == [1, 0]
    assert made["train"]["images"].shape == (2, 3, 4, 4)
    assert made["train"]["images"].dtype == torch.uint8
    assert made["test"]["images"][:, 0, 0, 0].tolist() == [3, 4]  # red is the lowest byte


@pytest.mark.parametrize(("image", "label"), [("img", "label"), ("img", "fine_label")])
def test_column_names_of_cifar(tmp_path: Path, image: str, label: str) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [(png(1), 1), (png(2), 0)], image, label)
    assert read(tmp_path)["train"]["labels"].tolist() == [1, 0]


def test_one_parquet_file_is_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [(png(i), i % 2) for i in range(20)])
    made = read(tmp_path / "train.parquet", held_out=0.3)
    assert [len(made[port]["labels"]) for port in ("train", "test")] == [14, 6]
    assert torch.bincount(made["test"]["labels"]).tolist() == [3, 3]
    ports = [set(made[port]["images"][:, 0, 0, 0].tolist()) for port in ("train", "test")]
    assert ports[0].isdisjoint(ports[1])
    assert ports[0] | ports[1] == set(range(20))


def test_folders_of_classes_with_a_test_part(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ("cat", "dog"), 3)
    write_folder(tmp_path / "val", ("cat", "dog"), 1, first=9)
    made = read(tmp_path, GREY)
    assert made["train"]["labels"].tolist() == [0, 0, 0, 1, 1, 1]
    assert made["train"]["images"][:, 0, 0, 0].tolist() == [0, 1, 2, 16, 17, 18]
    assert len(made["test"]["labels"]) == 2


def test_folders_are_labelled_in_the_order_of_names(tmp_path: Path) -> None:
    write_folder(tmp_path, ("cat", "dog"), 2)
    named = ImageSpec(size=4, mean=(0.5,), std=(0.5,), names=("dog", "cat"))
    made = read(tmp_path, named)
    assert made["train"]["labels"].tolist() == [0, 1]
    assert (made["train"]["images"][:, 0, 0, 0] >= 16).tolist() == [True, False]


def test_grey_images_are_read_for_colour_models(tmp_path: Path) -> None:
    write_folder(tmp_path, ("cat", "dog"), 2)
    images = read(tmp_path)["train"]["images"]
    assert torch.equal(images[:, 0], images[:, 2])


def test_resize_keeps_the_centre_square(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.repeat(np.arange(8, dtype=np.uint8)[None], 4, axis=0)).save(stream, "PNG")
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [(stream.getvalue(), i) for i in range(2)])
    images = read(tmp_path, GREY, resize=True)["train"]["images"]
    assert images[0, 0].tolist() == [[2, 3, 4, 5]] * 4


def test_images_of_another_size_are_fitted_when_asked(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [(png(1, (9, 5)), 0), (png(2), 1)])
    assert read(tmp_path, resize=True)["train"]["images"].shape == (2, 3, 4, 4)
    with pytest.raises(BadData, match=r"train.parquet: row 0: 9 x 5 pixels, expected 4 x 4; set"):
        read(tmp_path)


def test_images_that_are_many_are_kept_as_they_are_and_give_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [(png(i, (9, 6), kind="JPEG"), i % 2) for i in range(10)]
    write_parquet(tmp_path / "train.parquet", given)
    reader = ReadImages(images=COLOUR, classes=2, resize=True)
    decoded = save_data(tmp_path / "all", read(tmp_path, resize=True)["train"]).open()
    monkeypatch.setattr("stillhouse_vision.images.DECODED_BYTES", 100)
    monkeypatch.setattr("stillhouse_vision.images.SHARD_BYTES", 2 * len(given[0][0]))
    monkeypatch.setattr("stillhouse.data.shards.SHARD_BYTES", 100)
    parts = reader({"source": tmp_path}, work=Work.seeded(0))["train"]
    assert not isinstance(parts, dict)
    stored = save_data(tmp_path / "out", parts).open()
    assert len(list((tmp_path / "out").glob("*.arrow"))) > 2
    assert stored.columns["labels"].tolist() == decoded.columns["labels"].tolist()
    for found, wanted in zip(
        stored.batches(4, rng=torch.Generator().manual_seed(1)),
        decoded.batches(4, rng=torch.Generator().manual_seed(1)),
        strict=True,
    ):
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def holds(path: Path, part: object) -> bool:
    """Whether all of a part can be kept."""
    try:
        save_data(path, part)
    except BadData:
        return False
    return True


def test_an_image_that_cannot_be_read_is_refused_before_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stillhouse_vision.images.DECODED_BYTES", 100)
    rows = [(png(i), i % 2) for i in range(9)]
    write_parquet(tmp_path / "train.parquet", [*rows, (cut(png(3)), 1)])
    reader, source = ReadImages(images=COLOUR, classes=2, held_out=0.1), {"source": tmp_path}
    parts = reader(source, work=Work.seeded(0))
    split = next(split for split, part in parts.items() if not holds(tmp_path / split, part))
    with pytest.raises(BadData, match=r"train.parquet: row 9: not a whole image"):
        save_data(tmp_path / f"{split}-again", reader(source, work=Work.seeded(0))[split])


def cut(encoded: bytes) -> bytes:
    return encoded[: len(encoded) * 2 // 3]


@pytest.mark.parametrize(
    ("damaged", "problem"),
    [
        (cut(png(1, (64, 64), kind="JPEG")), r"not a whole image \(.*\); replace it"),
        (cut(png(1)), r"not a whole image \(.*\); replace it"),
        (b"", "not an image of a known format; replace it"),
        (b"junk", "not an image of a known format; replace it"),
    ],
    ids=["jpeg", "png", "empty", "junk"],
)
def test_truncated_image_in_a_row(tmp_path: Path, damaged: bytes, problem: str) -> None:
    rows = [(png(1), 0), (damaged, 1)]
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", rows)
    with pytest.raises(BadData, match=f"train.parquet: row 1: {problem}"):
        read(tmp_path)


def test_truncated_image_file(tmp_path: Path) -> None:
    write_folder(tmp_path, ("cat", "dog"), 3)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG")
    (tmp_path / "dog" / "1.png").unlink()
    (tmp_path / "dog" / "1.jpg").write_bytes(cut(stream.getvalue()))
    with pytest.raises(BadData, match=r"dog/1.jpg: not a whole image"):
        read(tmp_path)


@pytest.mark.parametrize("label", [2, -1])
def test_label_out_of_range(tmp_path: Path, label: int) -> None:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{split}.parquet", [(png(1), 0), (png(1), label), (png(1), 1)])
    message = rf"train.parquet: row 1: label {label} is not in 0..1; correct it or set classes"
    with pytest.raises(BadData, match=message):
        read(tmp_path)


def test_label_out_of_range_in_arrays() -> None:
    arrays = {f"{split}_images": np.zeros((2, 3, 4, 4), np.uint8) for split in ("train", "test")}
    arrays |= {f"{split}_labels": np.array([0, 7]) for split in ("train", "test")}
    with pytest.raises(BadData, match=r"train_labels: row 1: label 7 is not in 0..1"):
        ReadImages(images=COLOUR, classes=2)({"source": arrays}, work=Work())


def test_arrays_of_another_size() -> None:
    arrays = {f"{split}_images": np.zeros((2, 1, 8, 8), np.uint8) for split in ("train", "test")}
    arrays |= {f"{split}_labels": np.array([0, 1]) for split in ("train", "test")}
    message = r"train_images: torch.uint8 \[1, 8, 8\]; expected torch.uint8 \[3, 4, 4\]"
    with pytest.raises(BadData, match=message):
        ReadImages(images=COLOUR, classes=2)({"source": arrays}, work=Work())


@pytest.mark.parametrize("split", ["train", "test"])
def test_class_without_rows(tmp_path: Path, split: str) -> None:
    for name in ("train", "test"):
        rows = [(png(1), 0)] if name == split else [(png(1), 0), (png(1), 1)]
        write_parquet(tmp_path / f"{name}.parquet", rows)
    with pytest.raises(BadData, match=rf"\({split}\): class 1 has no image; add some or set cla"):
        read(tmp_path)


def test_class_folder_without_images(tmp_path: Path) -> None:
    write_folder(tmp_path, ("cat", "dog"), 2)
    (tmp_path / "eel").mkdir()
    (tmp_path / "eel" / "notes.txt").write_text("none yet")
    with pytest.raises(BadData, match=r"eel: no image in this class"):
        read(tmp_path, classes=3)


def test_class_folder_that_names_do_not_have(tmp_path: Path) -> None:
    write_folder(tmp_path, ("cat", "dog"), 2)
    with pytest.raises(BadData, match="class folder 'dog' is not in names"):
        read(tmp_path, ImageSpec(size=4, names=("cat", "eel")))


def test_too_few_images_to_hold_one_out(tmp_path: Path) -> None:
    write_folder(tmp_path, ("cat", "dog"), 1)
    with pytest.raises(BadData, match=r"cat/0.png: the only image of its class"):
        read(tmp_path)


def test_colour_images_for_a_grey_model(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [(png(i), i % 2) for i in range(4)])
    with pytest.raises(BadData, match=r"row \d: an image of mode RGB, but mean and std have 1"):
        read(tmp_path, GREY)


@pytest.mark.parametrize(
    ("encoded", "label", "missing"),
    [(None, 0, "image"), (png(1), None, "whole-number label"), (png(1), 0.5, "whole-number la")],
)
def test_rows_that_lack_something(tmp_path: Path, encoded: Any, label: Any, missing: str) -> None:
    write_parquet(tmp_path / "train.parquet", [(encoded, label)])
    with pytest.raises(BadData, match=f"train.parquet: row 0: has no {missing}"):
        read(tmp_path)


def test_columns_that_are_not_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [(png(1), 0)], image="photo")
    with pytest.raises(BadData, match="no column image or img; it has photo, label"):
        read(tmp_path)


def test_damaged_parquet_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [(png(1), 0)])
    (tmp_path / "train.parquet").write_bytes(cut((tmp_path / "train.parquet").read_bytes()))
    with pytest.raises(BadData, match=r"train.parquet: cannot be read as parquet"):
        read(tmp_path)


def test_test_part_alone(tmp_path: Path) -> None:
    write_parquet(tmp_path / "test.parquet", [(png(1), 0)])
    with pytest.raises(BadData, match=r"there is no train\*.parquet beside test.parquet"):
        read(tmp_path)


def test_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(BadData, match=r"neither train\*.parquet nor folders of images; expected"):
        read(tmp_path)
