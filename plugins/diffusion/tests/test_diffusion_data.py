import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.work import Work
from stillhouse_diffusion.data import ReadLabelled, balanced_labels
from stillhouse_diffusion.making import Conditions, SplitByLabel
from stillhouse_diffusion.samples import digits, mixture

READ = ReadLabelled(shape=(1, 4, 4), classes=2)


def png(value: int, size: int = 4) -> bytes:
    kept = io.BytesIO()
    Image.new("L", (size, size), value).save(kept, "PNG")
    return kept.getvalue()


def table(folder: Path, split: str, rows: list[tuple[Any, Any]]) -> None:
    images = [{"bytes": image, "path": ""} for image, _ in rows]
    pq.write_table(
        pa.table({"image": images, "label": [label for _, label in rows]}),
        folder / f"{split}.parquet",
    )


def read(source: Any, make: ReadLabelled = READ) -> Any:
    made = make({"source": source}, work=Work())
    return {k: v if isinstance(v, dict) else next(iter(v)) for k, v in made.items()}


def test_parquet_is_read_and_scaled_with_antialiasing(tmp_path: Path) -> None:
    table(tmp_path, "train", [(png(10), 0), (png(20, size=8), 1)])
    table(tmp_path, "test", [(png(30), 0), (png(40), 1)])
    made = read(tmp_path)
    assert made["train"]["images"].shape == (2, 1, 4, 4)
    assert made["train"]["images"][:, 0, 0, 0].tolist() == [10, 20]
    assert made["test"]["labels"].tolist() == [0, 1]


def test_folders_of_classes_are_numbered_by_name(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number, name in enumerate(("ant", "bee")):
            (tmp_path / split / name).mkdir(parents=True)
            values = (number * 90, number * 90 + (1 if split == "test" else 0))
            (tmp_path / split / name / "a.png").write_bytes(png(values[1] + 5))
    made = read(tmp_path)
    assert made["train"]["labels"].tolist() == [0, 1]
    assert made["train"]["images"][:, 0, 0, 0].tolist() == [5, 95]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([(png(1), 0), (png(2), 2)], r"train.parquet: row 1: label 2 is not in 0\.\.1"),
        ([(png(1), 0)], "class 1 has no image"),
        ([(png(1), 0), (b"no image", 1)], "row 1"),
        ([(png(1), 0), (None, 1)], "row 1: has no image or label"),
    ],
)
def test_images_that_cannot_be_used_are_named(
    tmp_path: Path, train: list[Any], message: str
) -> None:
    table(tmp_path, "train", train)
    table(tmp_path, "test", [(png(30), 0), (png(40), 1)])
    with pytest.raises(BadData, match=message):
        read(tmp_path)


def test_layouts_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="neither parquet nor folders of parts"):
        read(tmp_path)
    table(tmp_path, "train", [(png(1), 0), (png(2), 1)])
    with pytest.raises(BadData, match="no test part"):
        read(tmp_path)


def test_arrays_of_another_shape_are_refused() -> None:
    arrays = dict(digits())
    with pytest.raises(BadData, match=r"expected uint8 or float32 \[N, \*\(1, 4, 4\)\]"):
        read(arrays)
    made = read(arrays, ReadLabelled(shape=(1, 8, 8), classes=10))
    assert made["train"]["images"].dtype == torch.uint8
    with pytest.raises(BadData, match=r"label 9 is not in 0\.\.8"):
        read(arrays, ReadLabelled(shape=(1, 8, 8), classes=9))


def test_the_mixture_is_eight_circles_of_eight_points() -> None:
    found = mixture()
    points = found["train_images"].squeeze()
    for label in range(8):
        centre = points[found["train_labels"] == label].mean(0)
        expected = 0.5 * np.array([np.cos(np.pi * label / 4), np.sin(np.pi * label / 4)])
        np.testing.assert_allclose(centre, expected, atol=0.01)
    assert found["train_images"].dtype == np.float32


def test_conditions_ask_for_each_class_alike() -> None:
    made: Any = Conditions(rows=25, classes=10, shape=(1, 2, 2))({}, work=Work.seeded(1))["test"]
    assert torch.bincount(made["labels"]).tolist() == [3] * 5 + [2] * 5
    assert made["noise"].shape == (25, 1, 2, 2)
    assert balanced_labels(8, 12, 10).tolist() == [8, 9, 0, 1]
    with pytest.raises(BadSetting, match="rows must be >= classes"):
        Conditions(rows=3, classes=10, shape=(1, 2, 2))


@pytest.mark.parametrize("by", ["blocks", "random"])
def test_parts_have_the_rows_of_their_labels_and_global_ids(by: Any) -> None:
    labels = torch.arange(40) % 4
    data = TensorData({"images": torch.arange(40)[:, None, None, None], "labels": labels})
    made = SplitByLabel(students=2, classes=4, by=by)({"data": data}, work=Work.seeded(0))
    owner = made["owner"]["owner"]
    assert isinstance(owner, torch.Tensor)
    seen: list[int] = []
    for number in range(2):
        part = made[f"part{number}"]
        own, images = part["labels"], part["images"]
        assert isinstance(own, torch.Tensor)
        assert isinstance(images, torch.Tensor)
        assert {int(owner[label]) for label in own} == {number}
        assert torch.equal(images.flatten() % 4, own)
        seen += images.flatten().tolist()
    assert sorted(seen) == list(range(40))


def test_students_that_do_not_divide_the_classes_are_refused() -> None:
    with pytest.raises(BadSetting, match="3 students cannot share 10 classes equally"):
        SplitByLabel(students=3, classes=10)
