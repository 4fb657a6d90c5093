"""Data artifacts on disk: safetensors shards for tensors, parquet for text, `data.json` for the
schema.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stillhouse.artifact import Artifact
from stillhouse.data.data import Columns, Ragged, TensorData
from stillhouse.digest import path_digest
from stillhouse.errors import BadData, CorruptArtifact
from stillhouse.json_files import read_json

OPEN_DATA = "stillhouse.data.shards:load_data"
SCHEMA = "data.json"
SHARD_ROWS = 65536


def save_data(path: Path, data: Columns | Iterable[Columns]) -> Artifact:
    """Write columns, or a stream of them, into the new folder `path`; an `id` column is added where
    there is none.

    Raises BadData for columns of unequal length, floating values that are not finite, or no rows at
    all.
    """
    path.mkdir(parents=True)
    parts: Iterable[Columns] = _split(cast(Columns, data)) if isinstance(data, Mapping) else data
    rows, schema, shards = 0, {}, 0
    for part in parts:
        count = _check(part, path.name)
        part = dict(part)
        part.setdefault("id", torch.arange(rows, rows + count))
        schema = _schema(part)
        _save_shard(path, shards, part)
        rows, shards = rows + count, shards + 1
    if rows == 0:
        raise BadData(f"'{path.name}': no rows to write")
    record = {"rows": rows, "shards": shards, "columns": schema}
    (path / SCHEMA).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return Artifact(kind="data", path=path, digest=path_digest(path), opener=OPEN_DATA)


def _split(columns: Columns) -> Iterable[Columns]:
    count = len(next(iter(columns.values()))) if columns else 0
    if count <= SHARD_ROWS:
        return [columns]
    return (
        _slice(columns, torch.arange(a, min(a + SHARD_ROWS, count)))
        for a in range(0, count, SHARD_ROWS)
    )


def _slice(columns: Columns, index: Tensor) -> Columns:
    first, last = int(index[0]), int(index[-1]) + 1
    return {
        name: column.rows(index) if isinstance(column, Ragged) else column[first:last]
        for name, column in columns.items()
    }


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
            row = (
                int((~values.isfinite()).flatten(1).any(1).nonzero()[0]) if values.dim() > 1 else -1
            )
            raise BadData(
                f"'{where}': column '{name}' holds a value that is not finite (first in row {row})"
            )
    return next(iter(lengths.values()))


def _schema(part: Columns) -> dict[str, Any]:  # Any: JSON
    schema: dict[str, Any] = {}
    for name, column in part.items():
        if isinstance(column, list):
            schema[name] = {"dtype": "text", "shape": [], "ragged": False}
        else:
            values = column.values if isinstance(column, Ragged) else column
            shape, dtype = list(values.shape[1:]), str(values.dtype).removeprefix("torch.")
            schema[name] = {"dtype": dtype, "shape": shape, "ragged": isinstance(column, Ragged)}
    return schema


def _save_shard(path: Path, number: int, part: Columns) -> None:
    tensors: dict[str, Tensor] = {}
    for name, column in part.items():
        if isinstance(column, Ragged):
            tensors[f"{name}.values"], tensors[f"{name}.offsets"] = column.values, column.offsets
        elif isinstance(column, Tensor):
            tensors[name] = column
    # a copy each: slices of one tensor share memory, which the format refuses
    save_file(
        {k: v.contiguous().clone() for k, v in tensors.items()},
        str(path / f"{number:05d}.safetensors"),
    )
    if texts := {name: column for name, column in part.items() if isinstance(column, list)}:
        pq.write_table(pa.table(texts), path / f"{number:05d}.parquet")


def load_data(path: Path) -> TensorData:
    """The data of a folder with `data.json` and shards; a single shard stays memory-mapped."""
    redo = "run the stage that made it again"
    record = read_json(path / SCHEMA, _Schema, redo=redo)
    try:
        shards = [_load_shard(path, number, record.columns) for number in range(record.shards)]
    except (OSError, ValueError, KeyError, SafetensorError, pa.ArrowInvalid) as error:
        raise CorruptArtifact(f"{path}: cannot be read as data ({error}); {redo}") from error
    return TensorData({name: _join([shard[name] for shard in shards]) for name in record.columns})


@dataclass(frozen=True, kw_only=True)
class _Column:
    """A column in data.json."""

    dtype: str
    ragged: bool


@dataclass(frozen=True, kw_only=True)
class _Schema:
    """What is read of data.json."""

    shards: Annotated[int, pydantic.Field(ge=1)]
    columns: Annotated[dict[str, _Column], pydantic.Field(min_length=1)]


def _load_shard(path: Path, number: int, schema: Mapping[str, _Column]) -> Columns:
    tensors = load_file(str(path / f"{number:05d}.safetensors"))
    parquet = path / f"{number:05d}.parquet"
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


def _join(parts: list[Any]) -> Any:  # Any: parts of one column, all of one kind
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, list):
        return [row for part in parts for row in part]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    starts = torch.tensor([0, *(len(p.values) for p in parts[:-1])]).cumsum(0)
    offsets = [p.offsets[:-1] + start for p, start in zip(parts, starts, strict=True)]
    end = torch.tensor([sum(len(p.values) for p in parts)])
    return Ragged(values=torch.cat([p.values for p in parts]), offsets=torch.cat([*offsets, end]))
