"""Parquet files of other people's: opened, or refused in one line."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import BadData, MissingData

ROWS = 256  # in memory at a time


def open_parquet(
    file: Path, columns: Sequence[str] = (), *, memory_map: bool = False
) -> pq.ParquetFile:
    """A parquet file, in which `columns` are. Raises MissingData, or BadData for one that cannot be
    read or lacks a column.
    """
    if not file.is_file():
        raise MissingData(f"{file} not found; get the data set again")
    try:
        opened = pq.ParquetFile(file, memory_map=memory_map)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file, error) from error
    for name in columns:
        column_of(opened, (name,), file)
    return opened


def column_of(opened: pq.ParquetFile, names: Sequence[str], where: object) -> str:
    """The first of `names` that is a column. Raises BadData where none is."""
    there = opened.schema_arrow.names
    found = next((name for name in names if name in there), None)
    if found is None:
        raise BadData(f"{where}: no column {' or '.join(names)}; it has {', '.join(there)}")
    return found


def parquet_rows(
    file: Path | pq.ParquetFile, columns: Sequence[str] = ()
) -> Iterator[Mapping[str, Any]]:
    """Each row as a mapping of `columns`, or of all where none is named. Raises as `open_parquet`,
    and BadData where the file breaks off. Any: what the columns hold.
    """
    opened = file if isinstance(file, pq.ParquetFile) else open_parquet(file, columns)
    try:
        for batch in opened.iter_batches(ROWS, columns=list(columns) or None):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file, error) from error


def unreadable(file: object, error: Exception) -> BadData:
    reason = str(error).splitlines()[0]
    return BadData(f"{file}: cannot be read as parquet ({reason}); get it again")
