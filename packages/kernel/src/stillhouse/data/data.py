"""Data: sized, batchable from a generator; in memory, as rows of another, or as a folder of shards.

A data artifact is a folder of safetensors and parquet shards and `data.json`: tensors in
safetensors (memory-mapped when
opened), text and nested columns in parquet. A batch holds tensors only: `id: [B]` always, ragged
columns packed as
`<name>: [total, ...]` with `<name>_offsets: [B + 1]`. Text is read by `table()`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from stillhouse.errors import BadData

if TYPE_CHECKING:
    import pyarrow as pa


@runtime_checkable
class Data(Protocol):
    """A sized set of samples."""

    def __len__(self) -> int: ...

    def batches(self, size: int, *, rng: Generator | None) -> Iterator[Mapping[str, Tensor]]:
        """One pass of global batches, shuffled by `rng` (in order for None); the last may be
        shorter.
        """
        ...


@runtime_checkable
class Table(Protocol):
    """Data that also has text or nested columns."""

    def table(self) -> "pa.Table": ...


@dataclass(frozen=True, kw_only=True)
class Ragged:
    """A column of samples of any length: sample i is values[offsets[i]:offsets[i + 1]]."""

    values: Tensor  # [total, ...]
    offsets: Tensor  # [N + 1], int64, from 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def rows(self, index: Tensor) -> "Ragged":
        lengths = (self.offsets[1:] - self.offsets[:-1])[index]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        within = torch.arange(int(offsets[-1])) - torch.repeat_interleave(offsets[:-1], lengths)
        return Ragged(
            values=self.values[torch.repeat_interleave(self.offsets[:-1][index], lengths) + within],
            offsets=offsets,
        )


Columns = Mapping[str, "Tensor | Ragged | list[str]"]


def select(columns: Columns, index: Tensor) -> Columns:
    """The rows `index` of columns, text included."""
    picked: dict[str, Tensor | Ragged | list[str]] = {}
    for name, column in columns.items():
        match column:
            case Ragged():
                picked[name] = column.rows(index)
            case Tensor():
                picked[name] = column[index]
            case _:
                picked[name] = [column[i] for i in index.tolist()]
    return picked


class TensorData:
    """Columns held in memory or memory-mapped. An `id` column 0 ... N-1 is added where there is
    none.

    Raises BadData when columns differ in length or a floating column holds NaN (checked by
    `checked`).
    """

    def __init__(self, columns: Columns) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise BadData(f"columns differ in length: {lengths}")
        self.columns: dict[str, Tensor | Ragged | list[str]] = dict(columns)
        self._length = next(iter(lengths.values()), 0)
        if "id" not in self.columns:
            self.columns["id"] = torch.arange(self._length)

    def __len__(self) -> int:
        return self._length

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """The batch of these rows."""
        batch: dict[str, Tensor] = {}
        for name, column in self.columns.items():
            if isinstance(column, Tensor):
                batch[name] = column[index]
            elif isinstance(column, Ragged):
                picked = column.rows(index)
                batch[name], batch[f"{name}_offsets"] = picked.values, picked.offsets
        return batch

    def batches(self, size: int, *, rng: Generator | None) -> Iterator[Mapping[str, Tensor]]:
        order = (
            torch.randperm(len(self), generator=rng) if rng is not None else torch.arange(len(self))
        )
        for index in order.split(size):
            yield self.rows(index)

    def table(self) -> "pa.Table":
        import pyarrow as pa

        return pa.table(
            {name: column for name, column in self.columns.items() if isinstance(column, list)}
        )


def rows_of(batch: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """The rows `index` of a batch, ragged columns included."""
    picked: dict[str, Tensor] = {}
    for name, value in batch.items():
        if f"{name}_offsets" in batch:
            part = Ragged(values=value, offsets=batch[f"{name}_offsets"]).rows(index)
            picked[name], picked[f"{name}_offsets"] = part.values, part.offsets
        elif name not in picked:
            picked[name] = value[index]
    return picked


def row_of(batch: Mapping[str, Tensor], name: str, row: int) -> Tensor:
    """The values of one row of a batch's ragged column."""
    start, stop = batch[f"{name}_offsets"][row : row + 2].tolist()
    return batch[name][start:stop]


class Rows:
    """Rows of other data, by index; ids are those of the other data."""

    def __init__(self, data: TensorData, index: Tensor) -> None:
        self.data, self.index = data, index

    def __len__(self) -> int:
        return len(self.index)

    def batches(self, size: int, *, rng: Generator | None) -> Iterator[Mapping[str, Tensor]]:
        order = (
            torch.randperm(len(self), generator=rng) if rng is not None else torch.arange(len(self))
        )
        for picked in order.split(size):
            yield self.data.rows(self.index[picked])
