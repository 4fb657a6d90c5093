"""Unlabelled images: what is read, what is kept of a label, what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stillhouse.artifact import Built
from stillhouse.data.data import TensorData
from stillhouse.errors import BadData, BadSetting
from stillhouse.runs import project_root
from stillhouse.work import Work
from stillhouse_vision.glyphs import COPIES, FONTS, SYMBOLS, glyphs
from stillhouse_vision.models import ImageSpec, model
from stillhouse_vision.samples import digits
from stillhouse_vision.web import MostConfident, ReadWeb, find_images

IMAGES = ImageSpec(size=8)
GREY = ImageSpec(size=8, mean=(0.3,), std=(0.37,))
DATA = project_root(Path(__file__).parent) / "data"


def png(value: int, side: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (value, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def parquet(file: Path, values: list[int], labels: list[int] | None = None) -> Path:
    columns: dict[str, Any] = {"image": [{"bytes": png(v), "path": f"{v}.png"} for v in values]}
    if labels is not None:
        columns["label"] = labels
    pq.write_table(pa.table(columns), file)
    return file


def read(source: Any, images: ImageSpec = IMAGES) -> Any:
    found = ReadWeb(images=images)({"source": source}, work=Work())["web"]
    return found if isinstance(found, dict) else next(iter(found))


def classes(folder: Path, text: str | None = None) -> None:
    records = [{"label": 0, "cifar10": None}, {"label": 1, "cifar10": "cat"}]
    (folder / "classes.json").write_text(json.dumps(records) if text is None else text)


def test_parquet_is_fitted_and_its_labels_say_the_vocabulary_only(tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet", [10, 20, 30], [1, 0, 1])
    parquet(tmp_path / "val.parquet", [99], [0])
    classes(tmp_path)
    found = read(tmp_path)
    assert set(found) == {"images", "vocabulary"}
    assert found["images"].shape == (3, 3, 8, 8)
    assert found["images"][:, 0, 0, 0].tolist() == [10, 20, 30]
    assert found["vocabulary"].tolist() == [True, False, True]
    assert torch.equal(read(tmp_path / "train.parquet")["images"], found["images"])


def test_without_labels_or_their_meaning_there_is_no_vocabulary(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", [1, 2], [1, 0])
    assert set(read(tmp_path)) == {"images"}
    classes(tmp_path)
    assert set(read(tmp_path)) == {"images", "vocabulary"}
    parquet(tmp_path / "b.parquet", [3])  # one file that has no labels
    assert set(read(tmp_path)) == {"images"}


def test_folders_are_searched_to_any_depth(tmp_path: Path) -> None:
    for name, value in (("b/x.png", 2), ("a/deep/y.png", 1), ("z.png", 3)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(value))
    (tmp_path / "notes.txt").write_text("not an image")
    found = read(tmp_path)
    assert set(found) == {"images"}
    assert found["images"][:, 0, 0, 0].tolist() == [1, 2, 3]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="no image in it; expected parquet with a column image"):
        find_images(tmp_path)
    (tmp_path / "broken.png").write_bytes(png(1)[:40])
    with pytest.raises(BadData, match=r"broken.png: not a"):
        read(tmp_path)
    pq.write_table(pa.table({"photo": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(BadData, match="a.parquet: no column image or img; it has photo"):
        read(tmp_path)
    pq.write_table(pa.table({"image": [png(1), None]}), tmp_path / "a.parquet")
    with pytest.raises(BadData, match="a.parquet: row 1: has no image"):
        read(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadData, match="a.parquet: cannot be read as parquet"):
        read(tmp_path)
    with pytest.raises(BadData, match="a list; expected arrays, parquet or a folder"):
        read([1])
    with pytest.raises(BadData, match=r"expected torch.uint8 \[3, 8, 8\]"):
        read({"images": np.zeros((2, 1, 8, 8), np.uint8)})


@pytest.mark.parametrize("text", ["{", "[1]", '[{"label": 1}]'])
def test_classes_that_say_nothing_are_named(tmp_path: Path, text: str) -> None:
    parquet(tmp_path / "train.parquet", [1], [0])
    classes(tmp_path, text)
    with pytest.raises(BadData, match="classes.json: expected a list of records with label and"):
        read(tmp_path)


def test_glyphs_are_what_the_reader_reads() -> None:
    found = read(glyphs(), GREY)
    count = len(FONTS) * len(SYMBOLS) * COPIES
    assert found["images"].shape == (count, 1, 8, 8)
    assert int(found["vocabulary"].sum()) * 36 == count * 10
    images = found["images"].reshape(len(FONTS), len(SYMBOLS), COPIES, -1)
    assert len({p.numpy().tobytes() for p in images.reshape(count, -1)}) > 0.99 * count
    # stretched from black to white, and about 15 % of them inverted
    assert bool((images.amin(-1) <= 2).all())
    assert bool((images.amax(-1) >= 253).all())
    border = found["images"][:, 0, [0, 0, 7, 7], [0, 7, 0, 7]].float().mean(1)
    assert 0.1 < float((border > 127).float().mean()) < 0.25


def test_glyphs_are_the_same_every_time_and_no_digit_of_the_target() -> None:
    first, second = glyphs(), glyphs.__wrapped__()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    target = digits()
    own = {p.tobytes() for n in ("train_images", "test_images") for p in target[n]}
    assert not own & {p.tobytes() for p in first["images"]}


def test_most_confident_are_kept_in_their_order() -> None:
    torch.manual_seed(0)
    spec = model("cnn2", classes=3, images=GREY)
    teacher = Built(spec=spec, module=spec.new().eval())
    images = torch.randint(0, 256, (31, 1, 8, 8), dtype=torch.uint8)
    data = TensorData({"images": images, "vocabulary": torch.arange(31) < 9})
    made = MostConfident(share=0.3, batch=7)({"web": data, "teacher": teacher}, work=Work())
    with torch.no_grad():
        confidence = teacher.module({"images": images})["logits"].softmax(1).amax(1)
    expected = sorted(sorted(range(31), key=lambda i: -float(confidence[i]))[:9])
    found = made["web"]
    assert isinstance(found["id"], torch.Tensor)
    assert found["id"].tolist() == expected
    assert torch.equal(found["images"], images[expected])  # type: ignore[arg-type]
    assert set(found) == {"images", "vocabulary", "id"}
    with pytest.raises(BadSetting, match="share must be > 0"):
        MostConfident(share=0.0)


@pytest.mark.data
@pytest.mark.skipif(
    not (DATA / "tiny-imagenet-sample").is_dir(),
    reason=f"{DATA} not found. Run: uv run dvc pull data.dvc",
)
def test_photos_of_200_classes_of_which_22_are_the_targets() -> None:
    found = read(DATA / "tiny-imagenet-sample", ImageSpec())
    assert found["images"].shape == (8000, 3, 32, 32)
    assert int(found["vocabulary"].sum()) == 22 * 40
