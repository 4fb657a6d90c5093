"""Few rows of data: what a few-shot set, a label budget or a quick look is made by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from stillhouse.data.data import Columns, RowData
from stillhouse.errors import BadData, BadSetting, UnknownName
from stillhouse.work import Work


@dataclass(frozen=True, kw_only=True)
class Take:
    """`rows` rows of the port "data", drawn without replacement by the stage's seed; port "train".

    `by` names a column of whole numbers (class labels) of whose values as many rows each are taken,
    one more of some values where `rows` is no multiple. Ids stay those of the data. A maker for
    Make: raises BadData where the data, or the rows of a value, do not suffice.
    """

    rows: int
    by: str = ""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise BadSetting(f"take: rows must be >= 1 (got {self.rows})")

    def __call__(self, inputs: Mapping[str, Any], *, work: Work) -> Mapping[str, Columns]:
        # Any: what each input's opener returns
        data = inputs["data"]
        if not isinstance(data, RowData):
            raise BadData("take: port 'data' must be a stage's data")
        index = (
            self._balanced(data, work.rng) if self.by else _drawn(len(data), self.rows, work.rng)
        )
        return {"train": data.select(index)}

    def _balanced(self, data: RowData, rng: Generator) -> Tensor:
        column = data.columns.get(self.by)
        if not isinstance(column, Tensor) or column.ndim != 1:
            flat = [n for n, c in data.columns.items() if isinstance(c, Tensor) and c.ndim == 1]
            raise UnknownName("column", self.by, flat, where="take: by")
        values = column.unique()
        if self.rows < len(values):
            raise BadData(
                f"take: {self.rows} rows are fewer than the {len(values)} values of '{self.by}'; "
                f"take {len(values)} or more, or leave `by` out"
            )
        # which values have one row more is drawn, too
        more = set(torch.randperm(len(values), generator=rng)[: self.rows % len(values)].tolist())
        parts: list[Tensor] = []
        for number, value in enumerate(values):
            rows = (column == value).nonzero().flatten()
            count = self.rows // len(values) + (number in more)
            if len(rows) < count:
                raise BadData(
                    f"take: {count} rows of {self.by} {value.item():g} are wanted, and the data "
                    f"have {len(rows)}; take at most {len(rows) * len(values)}"
                )
            parts.append(rows[_drawn(len(rows), count, rng)])
        return torch.cat(parts).sort().values


def _drawn(length: int, count: int, rng: Generator) -> Tensor:
    if count > length:
        raise BadData(f"take: {count} rows are wanted, and the data have {length}")
    return torch.randperm(length, generator=rng)[:count].sort().values
