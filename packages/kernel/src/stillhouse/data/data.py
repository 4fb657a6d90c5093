"""Data: sized, batchable from a generator; in memory, as rows of another, or as a folder of shards.

A batch holds tensors only: `id: [B]` always, ragged columns packed as `<name>: [total, ...]` with
`<name>_offsets: [B + 1]`. Text is read by `table()`. Which rows a batch is made of is planned first
and read later, here or in another process (stillhouse.data.loader).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from stillhouse.data.encoded import Encoded
from stillhouse.data.loader import batches_of
from stillhouse.errors import BadData

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = "rows"
OFFSETS = "_offsets"  # ends the name of the column that goes with a ragged one
Plan = Mapping[str, Tensor]  # what a batch is read by: int64 [B] each, a value a row


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


class PlannedData(ABC):
    """Data of which each batch is a plan first: small, pure in the generator, and read later."""

    @property
    @abstractmethod
    def stored(self) -> bool:
        """Whether reading a batch is work for other processes: files to read, images to decode."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def plan(self, size: int, *, rng: Generator | None) -> Iterator[Plan]:
        """One pass of plans for global batches, as `Data.batches`. Part of a plan, the same rows of
        each of its tensors, is a plan of that part of the batch.
        """

    @abstractmethod
    def read(self, plan: Plan) -> dict[str, Tensor]:
        """The batch of a plan."""

    def share(self, plan: Plan, *, rank: int, nproc: int) -> Plan:
        """The part of a plan that one of `nproc` processes reads: every nproc-th row."""
        return {name: value[rank::nproc] for name, value in plan.items()}

    def batches(self, size: int, *, rng: Generator | None) -> Iterator[Mapping[str, Tensor]]:
        return batches_of(self.read, self.plan(size, rng=rng), stored=self.stored)


def pieces(order: Tensor, size: int) -> Sequence[Tensor]:
    """The rows of an order, `size` at a time; none of no row, of which torch's split makes one."""
    return order.split(size) if len(order) else ()


def is_stored(data: Data) -> bool:
    """Whether reading a batch of data is work for other processes; not for data that plan none."""
    return isinstance(data, PlannedData) and data.stored


def plans_of(data: Data, size: int, *, rng: Generator | None) -> Iterator[Plan]:
    """What each batch of a pass is read by; of data that plan nothing, the batches."""
    plans = data.plan if isinstance(data, PlannedData) else data.batches
    return iter(plans(size, rng=rng))


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


Column = Tensor | Ragged | list[str] | Encoded
Columns = Mapping[str, Column]


def select(columns: Columns, index: Tensor) -> Columns:
    """The rows `index` of columns, text included."""
    picked: dict[str, Column] = {}
    for name, column in columns.items():
        match column:
            case Ragged() | Encoded():
                picked[name] = column.rows(index)
            case Tensor():
                picked[name] = column[index]
            case _:
                picked[name] = [column[i] for i in index.tolist()]
    return picked


class RowData(PlannedData):
    """Data whose rows are found by their place: in memory (TensorData) or in shards (StoredData).

    `columns` are those that are not encoded; a column of shards is read on access.
    """

    @property
    @abstractmethod
    def columns(self) -> Mapping[str, Tensor | Ragged | list[str]]: ...

    @abstractmethod
    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """The batch of these rows."""

    @abstractmethod
    def select(self, index: Tensor) -> Columns:
        """These rows of all columns, text included, what is encoded as it is."""

    def plan(self, size: int, *, rng: Generator | None) -> Iterator[Plan]:
        order = (
            torch.randperm(len(self), generator=rng) if rng is not None else torch.arange(len(self))
        )
        return ({ROWS: index} for index in pieces(order, size))

    def read(self, plan: Plan) -> dict[str, Tensor]:
        return self.rows(plan[ROWS])

    def table(self) -> "pa.Table":
        import pyarrow as pa

        columns = self.columns.items()
        return pa.table({name: column for name, column in columns if isinstance(column, list)})


class TensorData(RowData):
    """Columns held in memory or memory-mapped. An `id` column 0 ... N-1 is added where there is
    none.

    Raises BadData when columns differ in length or are encoded.
    """

    def __init__(self, columns: Columns) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise BadData(f"columns differ in length: {lengths}")
        self._length = next(iter(lengths.values()), 0)
        self._columns = dict[str, Tensor | Ragged | list[str]]()
        for name, column in columns.items():
            if isinstance(column, Encoded):
                raise BadData(f"column '{name}': encoded; write it as a data artifact, and read it")
            self._columns[name] = column
        self._columns.setdefault("id", torch.arange(self._length))

    def __len__(self) -> int:
        return self._length

    @property
    def columns(self) -> dict[str, Tensor | Ragged | list[str]]:
        return self._columns

    @property
    def stored(self) -> bool:
        return False

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        for name, column in self.columns.items():
            if isinstance(column, Tensor):
                batch[name] = column[index]
            elif isinstance(column, Ragged):
                picked = column.rows(index)
                batch[name], batch[f"{name}_offsets"] = picked.values, picked.offsets
        return batch

    def select(self, index: Tensor) -> Columns:
        return select(self.columns, index)


def in_memory(data: RowData) -> TensorData:
    """The same rows, decoded and held in memory; data that are already as they are."""
    if isinstance(data, TensorData):
        return data
    batch = data.rows(torch.arange(len(data)))
    columns: dict[str, Tensor | Ragged | list[str]] = {
        name: Ragged(values=value, offsets=batch[f"{name}_offsets"])
        if f"{name}_offsets" in batch
        else value
        for name, value in batch.items()
        if not is_offsets(name, batch)
    }
    texts = {name: c for name, c in data.columns.items() if isinstance(c, list)}
    return TensorData({**columns, **texts})


def is_offsets(name: str, batch: Mapping[str, Tensor]) -> bool:
    """Whether a column of a batch holds the offsets of a ragged one."""
    return name.endswith(OFFSETS) and name.removesuffix(OFFSETS) in batch


def joined_offsets(parts: Sequence[Tensor]) -> Tensor:
    """The offsets of ragged columns one after the other."""
    lengths = torch.cat([offsets.diff() for offsets in parts])
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


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


class Rows(PlannedData):
    """Rows of other data, by index; ids are those of the other data."""

    def __init__(self, data: RowData, index: Tensor) -> None:
        self.data, self.index = data, index

    def __len__(self) -> int:
        return len(self.index)

    @property
    def stored(self) -> bool:
        return self.data.stored

    def plan(self, size: int, *, rng: Generator | None) -> Iterator[Plan]:
        order = (
            torch.randperm(len(self), generator=rng) if rng is not None else torch.arange(len(self))
        )
        return ({ROWS: self.index[picked]} for picked in pieces(order, size))

    def read(self, plan: Plan) -> dict[str, Tensor]:
        return self.data.read(plan)
