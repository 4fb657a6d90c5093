"""On the real data of data/, where they have been pulled."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from stillhouse.artifact import load_model
from stillhouse.data import TensorData
from stillhouse.metrics import Classification
from stillhouse.runs import project_root
from stillhouse.settings import make_recipe, make_settings
from stillhouse.stages import Make
from stillhouse.work import Work
from stillhouse_vision.data import ReadImages
from stillhouse_vision.models import ImageSpec, LoadCheckpoint, model
from stillhouse_vision.spaces import NasBench201, NasBenchMacro, parse_cell, parse_macro

DATA = project_root(Path(__file__).parent) / "data"
IMAGES = ImageSpec()

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(
        not (DATA / "cifar10-subset").is_dir(),
        reason=f"{DATA} not found. Run: uv run dvc pull data.dvc",
    ),
]


def first(parts: object) -> Mapping[str, Tensor]:
    assert not isinstance(parts, dict)
    (columns,) = list(parts)  # type: ignore[call-overload]
    return columns


def test_cifar10_photos_are_read_without_the_lossless_rows() -> None:
    reader = ReadImages(images=IMAGES, classes=10)
    made = reader({"source": DATA / "cifar10-subset"}, work=Work())
    train, test = first(made["train"]), first(made["test"])
    assert torch.bincount(train["labels"]).tolist() == [2000] * 10
    assert test["images"].shape == (5000, 3, 32, 32)
    mean = train["images"].float().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.491, 0.482, 0.447], abs=0.01)


def test_mnist_digits_are_read_as_grey_images() -> None:
    images = ImageSpec(size=28, mean=(0.13,), std=(0.31,))
    made = ReadImages(images=images, classes=10)({"source": DATA / "mnist-subset"}, work=Work())
    assert first(made["test"])["images"].shape == (10_000, 1, 28, 28)


def test_mnist_is_split_over_ten_clients_as_the_recipe_says() -> None:
    made = make_recipe("vision/knfu", make_settings("vision/knfu", "small"))
    read, split = made.stage("data"), made.stage("split-0")
    assert isinstance(read, Make)
    assert isinstance(split, Make)
    parts = read.make({"source": DATA / "mnist-subset"}, work=Work())
    arrays = {port: TensorData(first(columns)) for port, columns in parts.items()}
    found = split.make(arrays, work=Work.seeded(0))
    rows = torch.cat([columns["id"] for port, columns in found.items() if port != "test"])
    assert len(rows) == len(rows.unique()) == 300 + 10 * 20
    weights = found["test"]["weights"]
    assert weights.shape == (10_000, 10)
    torch.testing.assert_close(weights.sum(0), torch.ones(10))


# published on the original pixels: 91.8 and 93.6 %; these are JPEG copies of about 30 dB
@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [("resnet20", "resnet20-12fca82f.th", 0.81), ("resnet56", "resnet56-4bfd9763.th", 0.83)],
)
def test_pretrained_resnets_score_on_the_jpeg_test_rows(
    name: str, file: str, expected: float, tmp_path: Path
) -> None:
    convert = LoadCheckpoint(model=model(name, classes=10, images=IMAGES))
    source = DATA / "weights-small" / "cifar10-resnet" / file
    convert({"checkpoint": source}, tmp_path / "m", work=Work())
    made = ReadImages(images=IMAGES, classes=10)({"source": DATA / "cifar10-subset"}, work=Work())
    # every fifth of the 5,000 test rows: 1.2 points of standard error, seconds instead of a minute
    test = {column: value[::5] for column, value in first(made["test"]).items()}
    with torch.no_grad():
        module = load_model(tmp_path / "m").module
        scores = Classification()({"student": module}, TensorData(test), work=Work())
    assert scores["accuracy"] == pytest.approx(expected, abs=0.035)


def test_macro_networks_have_the_tables_size() -> None:
    file = DATA / "nas-tables" / "nas_bench_macro_cifar10.parquet"
    rows = pq.read_table(file, columns=["arch", "params", "flops"]).to_pylist()
    space = NasBenchMacro(classes=10)
    assert len(rows) == len(space)
    for row in rows[:: len(rows) // 25]:
        cost = space.cost({"blocks": parse_macro(row["arch"])})
        assert cost == {"parameters": row["params"], "macs": row["flops"]}


def test_every_cell_of_the_table_is_a_cell_of_the_space() -> None:
    file = DATA / "nas-tables" / "nats_bench_tss.parquet"
    texts = pq.read_table(file, columns=["arch_str"])["arch_str"].to_pylist()
    space = NasBench201(classes=10)
    assert {parse_cell(text) for text in texts} == {
        tuple(space.at(index)["ops"]) for index in range(len(space))
    }
