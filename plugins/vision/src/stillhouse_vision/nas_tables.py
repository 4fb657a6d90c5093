"""Tables of trained architectures, as other people published them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Generator

from stillhouse.data.data import Columns
from stillhouse.errors import BadData, BadSetting
from stillhouse.search.space import text_of
from stillhouse_vision.spaces import parse_cell

CELLS = "nats_bench_tss.parquet"
CELL, ACCURACY = "arch_str", "cifar10_test_acc"


@dataclass(frozen=True, kw_only=True)
class SampleCells:
    """A `make`: `count` different cells of the NAS-Bench-201 table in the folder "source", drawn at
    random, as the port "trials": "encoding" as `NasBench201` has it, "score" their test accuracy on
    CIFAR-10 (200 epochs without a teacher; a fraction).
    """

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise BadSetting(f"count must be >= 1 (got {self.count})")

    def __call__(
        self, inputs: Mapping[str, Any], *, rng: Generator
    ) -> Mapping[str, Columns]:  # Any: what each input's opener returns
        table = _read(Path(inputs["source"]) / CELLS)
        if len(table) < self.count:
            raise BadData(f"{CELLS}: {len(table)} cells, {self.count} are wanted; set fewer")
        rows = torch.randperm(len(table), generator=rng)[: self.count]
        chosen = table.take(pa.array(rows.tolist())).to_pydict()
        encodings = [text_of({"ops": list(parse_cell(text))}) for text in chosen[CELL]]
        accuracy = torch.tensor(chosen[ACCURACY], dtype=torch.float64) / 100
        return {"trials": {"encoding": encodings, "score": accuracy}}


def _read(file: Path) -> pa.Table:
    try:
        return pq.read_table(file, columns=[CELL, ACCURACY])
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise BadData(
            f"{file}: cannot be read as a table with {CELL} and {ACCURACY} ({reason})"
        ) from error
