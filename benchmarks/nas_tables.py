"""The NAS benchmarks of data/nas-tables as search spaces with a test accuracy an architecture, the
pictures they are scored on, and the networks' fresh weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import torch
from torch import Generator, Tensor, nn

from stillhouse.errors import MissingData
from stillhouse.search import Encoding, Listed
from stillhouse.training import mix
from stillhouse.work import Work
from stillhouse_vision.data import ReadImages
from stillhouse_vision.models import ImageSpec
from stillhouse_vision.models.cells import EDGES
from stillhouse_vision.spaces import (
    NasBench201,
    NasBenchMacro,
    cell_text,
    macro_text,
    parse_cell,
    parse_macro,
)

ROOT = Path(__file__).parent.parent
CLASSES = 10
IMAGES = ImageSpec()  # 32 px, three channels
Name = Literal["201", "macro"]
FILES: Mapping[Name, str] = {
    "201": "nats_bench_tss.parquet",
    "macro": "nas_bench_macro_cifar10.parquet",
}
ACCURACIES: Mapping[Name, str] = {
    "201": "CIFAR-10 test accuracy in % after 200 epochs without a teacher, mean over seeds",
    "macro": "CIFAR-10 test accuracy in %, trained without a teacher, mean over 3 seeds",
}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A row of a table; `text` is the benchmark's own, `accuracy` in per cent."""

    text: str
    encoding: Encoding
    accuracy: float

    @property
    def connected(self) -> bool:
        """Whether the picture reaches the classifier: a cell may have no way from in to out."""
        ops: Sequence[str] | None = self.encoding.get("ops")
        if ops is None:
            return True
        reached = {0}
        for (start, end), op in sorted(zip(EDGES, ops, strict=True)):
            if op != "none" and start in reached:
                reached.add(end)
        return 3 in reached


@dataclass(frozen=True, kw_only=True)
class Table:
    """A benchmark: its space and every architecture in the file's order."""

    name: Name
    space: Listed
    rows: Sequence[Architecture]

    @property
    def best(self) -> Architecture:
        return max(self.rows, key=lambda row: row.accuracy)

    def rank(self, accuracy: float) -> int:
        """How many architectures are better, plus 1."""
        return 1 + sum(row.accuracy > accuracy for row in self.rows)

    def text_of(self, encoding: Encoding) -> str:
        if self.name == "201":
            return cell_text(encoding["ops"])
        return macro_text(encoding["blocks"])

    def sampled(self, count: int, seed: int) -> list[Architecture]:
        """`count` different rows, uniformly."""
        order = torch.randperm(len(self.rows), generator=Generator().manual_seed(seed))
        return [self.rows[index] for index in order[:count].tolist()]

    def network(self, encoding: Encoding, seed: int) -> nn.Module:
        """Fresh weights of the default initialisation, drawn from `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.space.model(encoding).new()


def read_table(name: Name, data: Path) -> Table:
    file = data / "nas-tables" / FILES[name]
    if not file.is_file():
        raise MissingData(f"{file} is not there. Run: uv run dvc pull data.dvc")
    columns = pq.read_table(file).to_pydict()
    if name == "201":
        rows = [
            Architecture(text=text, encoding={"ops": list(parse_cell(text))}, accuracy=accuracy)
            for text, accuracy in zip(columns["arch_str"], columns["cifar10_test_acc"], strict=True)
        ]
        return Table(name=name, space=NasBench201(classes=CLASSES, images=IMAGES), rows=rows)
    rows = [
        Architecture(text=text, encoding={"blocks": list(parse_macro(text))}, accuracy=accuracy)
        for text, accuracy in zip(columns["arch"], columns["mean_acc"], strict=True)
    ]
    return Table(name=name, space=NasBenchMacro(classes=CLASSES, images=IMAGES), rows=rows)


def pictures(data: Path) -> Mapping[str, Tensor]:
    """CIFAR-10 training pictures, uint8 [N, 3, 32, 32], and labels [N]."""
    folder = data / "cifar10-subset"
    if not folder.is_dir():
        raise MissingData(f"{folder} is not there. Run: uv run dvc pull data.dvc")
    read = ReadImages(images=IMAGES, classes=CLASSES)
    parts: Any = read({"source": folder}, work=Work())["train"]  # Any: columns in parts
    (columns,) = list(parts)
    return columns


def batch(data: Path, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """`size` random pictures as floats in [0, 1] [size, 3, 32, 32], and their labels."""
    columns = pictures(data)
    rng = Generator().manual_seed(mix(seed, size))
    chosen = torch.randperm(len(columns["labels"]), generator=rng)[:size]
    return columns["images"][chosen].float() / 255, columns["labels"][chosen]
