"""Data artifacts on disk: `data.json` for the schema, and tensors, lists, texts and encoded bytes.

What fits one shard is one safetensors file, with its text in parquet: it is memory-mapped and
decoded already. What does not, or is encoded, is Arrow IPC files, uncompressed, one record batch
each, read by memory map (`StoredData`): any size, in little memory. Their bytes are hashed while
they are written.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stillhouse.artifact import Artifact
from stillhouse.data.data import Column, Columns, Ragged, RowData, TensorData, joined_offsets
from stillhouse.data.encoded import Encoded
from stillhouse.data.stored import ShardFile, StoredColumn, StoredData, decoder_record, write_shard
from stillhouse.digest import path_digest
from stillhouse.errors import BadData, CorruptArtifact
from stillhouse.json_files import read_json
from stillhouse.memo import remember_written

OPEN_DATA = "stillhouse.data.shards:load_data"
SCHEMA = "data.json"
SHARD_ROWS = 65536
SHARD_BYTES = 128 << 20  # smaller parts are joined, larger ones that come whole are divided


def save_data(path: Path, data: Columns | Iterable[Columns]) -> Artifact:
    """Write columns, or a stream of them, into the new folder `path`; an `id` column is added where
    there is none. What fits one shard and is not encoded is decoded data in one file. Parts of a
    stream that are smaller than a shard are joined.

    Raises BadData for columns of unequal length, parts of other columns, floating values that are
    not finite, or no rows at all.
    """
    path.mkdir(parents=True)
    whole = isinstance(data, Mapping)
    parts = _split(cast(Columns, data)) if whole else _regrouped(data, where=path.name)
    first, writer = list(islice(parts, 2)), _Writer(path)
    if len(first) == 1 and not any(isinstance(c, Encoded) for c in first[0].values()):
        record = writer.whole(first[0])
    else:
        record = writer.stream(chain(first, parts))
    (path / SCHEMA).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    remember_written({path / name: sha256 for name, sha256 in writer.hashed.items()})
    return Artifact(kind="data", path=path, digest=path_digest(path), opener=OPEN_DATA)


def _split(columns: Columns) -> Iterator[Columns]:
    count = len(next(iter(columns.values()))) if columns else 0
    size = count
    if count > SHARD_ROWS or any(isinstance(c, Encoded) for c in columns.values()):
        size = max(1, min(SHARD_ROWS, SHARD_BYTES * count // max(1, _bytes(columns))))
    for a in range(0, count, max(1, size)):
        yield columns if size == count else _slice(columns, a, min(a + size, count))
    if count == 0:
        yield columns


def _regrouped(parts: Iterable[Columns], *, where: str) -> Iterator[Columns]:
    """Parts of a stream, small ones with the same columns joined up to a shard's size."""
    held, size = list[Columns](), 0
    for part in parts:
        _check(part, where)
        more = _bytes(part)
        if held and (size + more > SHARD_BYTES or _schema(part) != _schema(held[0])):
            yield _joined(held)
            held, size = [], 0
        held.append(part)
        size += more
    if held:
        yield _joined(held)


def _joined(parts: Sequence[Columns]) -> Columns:
    return (
        parts[0]
        if len(parts) == 1
        else {name: _one([part[name] for part in parts]) for name in parts[0]}
    )


def _one(parts: Sequence[Any]) -> Any:  # Any: parts of one column, all of one kind
    first = parts[0]
    match first:
        case Tensor():
            return torch.cat(list(parts))
        case list():
            return [row for part in parts for row in part]
        case Encoded():
            values = [row for part in parts for row in part.values]
            return Encoded(values=values, decoder=first.decoder)
        case _:
            offsets = joined_offsets([part.offsets for part in parts])
            return Ragged(values=torch.cat([part.values for part in parts]), offsets=offsets)


def _bytes(columns: Columns) -> int:
    return sum(_bytes_of(column) for column in columns.values())


def _bytes_of(column: Column) -> int:
    match column:
        case Ragged():
            return column.values.nbytes
        case Encoded():
            return sum(map(len, column.values))
        case list():
            return sum(map(len, column))
        case _:
            return column.nbytes


def _slice(columns: Columns, first: int, last: int) -> Columns:
    index = torch.arange(first, last)
    return {
        name: column.rows(index) if isinstance(column, Ragged | Encoded) else column[first:last]
        for name, column in columns.items()
    }


@dataclass
class _Writer:
    path: Path
    rows: int = 0
    columns: dict[str, Any] = field(default_factory=dict[str, Any])  # Any: JSON
    hashed: dict[str, str] = field(default_factory=dict[str, str])  # sha256 by file

    def whole(self, part: Columns) -> dict[str, Any]:  # Any: JSON
        part = self._checked(part)
        tensors: dict[str, Tensor] = {}
        for name, column in part.items():
            if isinstance(column, Ragged):
                tensors[f"{name}.values"] = column.values
                tensors[f"{name}.offsets"] = column.offsets
            elif isinstance(column, Tensor):
                tensors[name] = column
        # a copy each: slices of one tensor share memory, which the format refuses
        save_file(
            {k: v.contiguous().clone() for k, v in tensors.items()},
            str(self.path / "00000.safetensors"),
        )
        if texts := {name: column for name, column in part.items() if isinstance(column, list)}:
            pq.write_table(pa.table(texts), self.path / "00000.parquet")
        return {"rows": self._some(), "shards": 1, "columns": self.columns}

    def stream(self, parts: Iterable[Columns]) -> dict[str, Any]:  # Any: JSON
        shards: list[ShardFile] = []
        decoders: dict[str, Any] = {}
        for part in parts:
            part = self._checked(part)
            for name, column in part.items():
                if isinstance(column, Encoded) and name not in decoders:
                    decoders[name] = decoder_record(column.decoder)
            shards.append(write_shard(self.path / f"{len(shards):05d}.arrow", part))
            self.hashed[shards[-1].file] = shards[-1].sha256
        return {
            "format": "arrow",
            "rows": self._some(),
            "shards": [shard.record() for shard in shards],
            "columns": self.columns,
            "decoders": decoders,
        }

    def _some(self) -> int:
        if self.rows == 0:
            raise BadData(f"'{self.path.name}': no rows to write")
        return self.rows

    def _checked(self, part: Columns) -> Columns:
        count = _check(part, self.path.name)
        part = dict(part)
        part.setdefault("id", torch.arange(self.rows, self.rows + count))
        schema = _schema(part)
        if self.columns and schema != self.columns:
            odd = next(n for n in {*schema, *self.columns} if schema.get(n) != self.columns.get(n))
            raise BadData(
                f"'{self.path.name}': column '{odd}' of row {self.rows} on is "
                f"{_kind(schema.get(odd))}, and {_kind(self.columns.get(odd))} before"
            )
        self.columns, self.rows = schema, self.rows + count
        return part


def _kind(column: Mapping[str, Any] | None) -> str:  # Any: JSON
    return "missing" if column is None else f"{column['dtype']} {column['shape']}"


def _check(part: Columns, where: str) -> int:
    lengths = {name: len(column) for name, column in part.items()}
    if len(set(lengths.values())) != 1:
        raise BadData(f"'{where}': columns differ in length: {lengths}")
    for name, column in part.items():
        values = column.values if isinstance(column, Ragged) else column
        if (
            isinstance(values, Tensor)
            and values.is_floating_point()
            and not bool(values.isfinite().all())
        ):
            first = int((~values.isfinite()).flatten(min(1, values.dim() - 1)).nonzero()[0, 0])
            if isinstance(column, Ragged):
                first = int(torch.searchsorted(column.offsets, first, right=True)) - 1
            raise BadData(
                f"'{where}': column '{name}' holds a value that is not finite (first in row "
                f"{first})"
            )
    return next(iter(lengths.values()))


def _schema(part: Columns) -> dict[str, Any]:  # Any: JSON
    schema: dict[str, Any] = {}
    for name, column in part.items():
        match column:
            case list():
                schema[name] = {"dtype": "text", "shape": [], "ragged": False}
            case Encoded():
                schema[name] = {"dtype": "encoded", "shape": [], "ragged": False}
            case _:
                values = column.values if isinstance(column, Ragged) else column
                shape, dtype = list(values.shape[1:]), str(values.dtype).removeprefix("torch.")
                ragged = isinstance(column, Ragged)
                schema[name] = {"dtype": dtype, "shape": shape, "ragged": ragged}
    return schema


def load_data(path: Path) -> RowData:
    """The data of a folder with `data.json`: decoded data memory-mapped, else read row by row.

    Raises CorruptArtifact for what cannot be read, StaleInput for a decoder whose code changed.
    """
    redo = "run the stage that made it again"
    head = read_json(path / SCHEMA, _Head, redo=redo)
    try:
        if head.format == "arrow":
            record = read_json(path / SCHEMA, _Arrow, redo=redo)
            return StoredData.opened(
                path, record.shards, columns=record.columns, decoders=record.decoders
            )
        return TensorData(_load(path, read_json(path / SCHEMA, _Whole, redo=redo).columns))
    except (OSError, ValueError, KeyError, SafetensorError, pa.ArrowInvalid) as error:
        raise CorruptArtifact(f"{path}: cannot be read as data ({error}); {redo}") from error


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What data.json says of its form."""

    format: Literal["", "arrow"] = ""


@dataclass(frozen=True, kw_only=True)
class _Whole:
    """What is read of data.json beside one safetensors file."""

    shards: Literal[1]
    columns: Annotated[dict[str, StoredColumn], pydantic.Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class _Arrow:
    """What is read of data.json beside Arrow files."""

    shards: Annotated[list[ShardFile], pydantic.Field(min_length=1)]
    columns: Annotated[dict[str, StoredColumn], pydantic.Field(min_length=1)]
    decoders: dict[str, dict[str, Any]]  # Any: JSON


def _load(
    path: Path, schema: Mapping[str, StoredColumn]
) -> Mapping[str, Tensor | Ragged | list[str]]:
    tensors = load_file(str(path / "00000.safetensors"))
    parquet = path / "00000.parquet"
    texts = pq.read_table(parquet) if parquet.is_file() else None
    columns: dict[str, Tensor | Ragged | list[str]] = {}
    for name, column in schema.items():
        if column.ragged:
            columns[name] = Ragged(
                values=tensors[f"{name}.values"], offsets=tensors[f"{name}.offsets"]
            )
        elif column.dtype == "text" and texts is not None:
            columns[name] = texts.column(name).to_pylist()
        else:
            columns[name] = tensors[name]
    return columns
