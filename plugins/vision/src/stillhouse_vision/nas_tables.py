"""Tables of trained architectures, as other people published them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from stillhouse.data.data import Columns
from stillhouse.data.parquet import open_parquet
from stillhouse.errors import BadData, BadSetting
from stillhouse.search.space import text_of
from stillhouse.work import Work
from stillhouse_vision.spaces import parse_cell

CELLS = "nats_bench_tss.parquet"
CELL = "arch_str"
# columns by the number of classes
ACCURACIES: Mapping[int, str] = {10: "cifar10_test_acc", 100: "cifar100_test_acc"}


@dataclass(frozen=True, kw_only=True)
class SampleCells:
    """A `make`: `count` different cells of the NAS-Bench-201 table in the folder "source", drawn at
    random, as the port "trials": "encoding" as `NasBench201` has it, "score" their test accuracy on
    CIFAR-10 or, of 100 `classes`, CIFAR-100 (200 epochs without a teacher; a fraction).
    """

    count: int
    classes: int = 10

    def __post_init__(self) -> None:
        if self.count < 1:
            raise BadSetting(f"count must be >= 1 (got {self.count})")
        if self.classes not in ACCURACIES:
            raise BadSetting(f"the table has 10 or 100 classes (got {self.classes})")

    def __call__(
        self, inputs: Mapping[str, Any], *, work: Work
    ) -> Mapping[str, Columns]:  # Any: what each input's opener returns
        column = ACCURACIES[self.classes]
        columns = [CELL, column]
        table = open_parquet(Path(inputs["source"]) / CELLS, columns).read(columns)
        if len(table) < self.count:
            raise BadData(f"{CELLS}: {len(table)} cells, {self.count} are wanted; set fewer")
        rows = torch.randperm(len(table), generator=work.rng)[: self.count]
        chosen = table.take(pa.array(rows.tolist())).to_pydict()
        encodings = [text_of({"ops": list(parse_cell(text))}) for text in chosen[CELL]]
        accuracy = torch.tensor(chosen[column], dtype=torch.float64) / 100
        return {"trials": {"encoding": encodings, "score": accuracy}}
